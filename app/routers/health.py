"""Routes for those who watch the service: health, readiness, metrics."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from app.operation.metrics import scrape
from app.problems.problems import (
    STORE_AWAY,
    LoopEnded,
    NoWorker,
    Stopping,
    StoreFull,
    WorkersStarting,
    problems,
)
from app.routers.dependencies import (
    ModelCatalog,
    OwnMetrics,
    RedisClient,
    StoreProbe,
    not_stopping,
)
from app.schemas.health import ApiReadiness, Health, Readiness, Worker
from worker.jobs.keys import PROBE, STARTING, WORKERS
from worker.jobs.worker_registry import READ_WORKERS, parse_workers

router = APIRouter(tags=["health"])


class PrometheusText(Response):
    """A response in the text format of Prometheus."""

    media_type = CONTENT_TYPE_LATEST


@router.get(
    "/healthz",
    description="Whether this process answers, and is whole. Says nothing of Redis or the workers: "
    "restarting the API would not help those.",
    responses=problems(LoopEnded),
)
async def healthz(request: Request) -> Health:
    """Answer that this process is alive.

    Raises:
        LoopEnded: it answers, but something that it does beside that has ended.
    """
    if failed := request.app.state.failed_loops:
        raise LoopEnded(failed)
    return Health()


@router.get(
    "/readyz",
    description="Whether a job posted now would run: Redis takes writes, and a worker is alive.",
    dependencies=[Depends(not_stopping)],
    responses=problems(NoWorker, WorkersStarting, *STORE_AWAY, StoreFull, Stopping),
)
async def readyz(redis: RedisClient, probe: StoreProbe, request: Request) -> Readiness:
    """Answer with the live workers.

    Raises:
        NoWorker: there is none that takes jobs.
        WorkersStarting: there is none yet.
        RedisError: the job store did not answer, or refuses writes.
    """
    await probe.check()
    entries = await READ_WORKERS.call(redis, workers=WORKERS)
    workers = parse_workers(entries, with_faulty=True)
    if all(worker.fault for worker in workers):
        if await redis.exists(STARTING):
            raise WorkersStarting
        fault = workers[0].fault if workers else ""
        raise NoWorker(request.app.state.supervisor, fault)
    return Readiness(
        workers=[Worker.model_validate(worker, from_attributes=True) for worker in workers]
    )


@router.get(
    "/readyz/api",
    description="Whether this process can serve: Redis answers. It may be full, and no worker may "
    "be alive.",
    dependencies=[Depends(not_stopping)],
    responses=problems(*STORE_AWAY, Stopping),
)
async def readyz_api(redis: RedisClient) -> ApiReadiness:
    """Answer if Redis does.

    It may be full: what was made can still be fetched, and jobs can be deleted.
    """
    # Not PING, which a server with a full disk refuses.
    await redis.exists(PROBE)
    return ApiReadiness()


@router.get(
    "/metrics",
    description="For Prometheus: open jobs, what waits for each model, and the workers' speed.",
    response_class=PrometheusText,
    responses=problems(*STORE_AWAY),
)
async def metrics(redis: RedisClient, catalog: ModelCatalog, own: OwnMetrics) -> Response:
    """Answer in the text format of Prometheus."""
    return PrometheusText(await scrape(redis, catalog, own))
