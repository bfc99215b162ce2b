"""Routes for those who watch the service: health, readiness, metrics."""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from app.operation.metrics import scrape
from app.problems.problems import NoWorker, StoreUnreachable, problems
from app.routers.dependencies import RedisClient
from app.schemas.health import Health, Readiness, Worker
from worker.jobs.keys import WORKERS
from worker.jobs.worker_registry import READ_WORKERS, parse_workers

router = APIRouter(tags=["health"])


class PrometheusText(Response):
    """A response in the text format of Prometheus."""

    media_type = CONTENT_TYPE_LATEST


@router.get(
    "/healthz",
    description="Whether this process answers. Says nothing of Redis or the workers: restarting "
    "the API would not help those.",
)
async def healthz() -> Health:
    """Answer that this process is alive."""
    return Health()


@router.get(
    "/readyz",
    description="Whether a job posted now would run: Redis answers, and a worker is alive.",
    responses=problems(NoWorker, StoreUnreachable),
)
async def readyz(redis: RedisClient) -> Readiness:
    """Answer with the live workers.

    Raises:
        NoWorker: there is none.
    """
    workers = parse_workers(await READ_WORKERS.call(redis, workers=WORKERS))
    if not workers:
        raise NoWorker
    return Readiness(
        workers=[Worker.model_validate(worker, from_attributes=True) for worker in workers]
    )


@router.get(
    "/metrics",
    description="For Prometheus: open jobs and image-steps, and the workers' speed.",
    response_class=PrometheusText,
    responses=problems(StoreUnreachable),
)
async def metrics(redis: RedisClient) -> Response:
    """Answer with the open work and the workers' speed in the text format of Prometheus."""
    return PrometheusText(await scrape(redis))
