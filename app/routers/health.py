from __future__ import annotations

from typing import cast

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from app.operation.metrics import scrape
from app.problems.problems import NoWorker, StoreUnreachable, problems
from app.routers.dependencies import Catalog, Store
from app.schemas.health import ApiReadiness, Health, Readiness, Worker
from worker.jobs import worker_registry
from worker.jobs.keys import WORKERS

router = APIRouter(tags=["health"])


class PrometheusText(Response):
    media_type = CONTENT_TYPE_LATEST


@router.get("/healthz")
async def healthz() -> Health:
    """Whether this process answers. Says nothing of Redis or the workers: restarting the API would not help those."""
    return Health()


@router.get("/readyz", responses=problems(NoWorker, StoreUnreachable))
async def readyz(store: Store) -> Readiness:
    """Whether a job posted now would run: Redis answers, and a worker is alive."""
    workers = worker_registry.read(
        cast("list[bytes]", await store.eval(worker_registry.LOOK, 1, WORKERS))
    )
    if not workers:
        raise NoWorker
    return Readiness(
        workers=[Worker.model_validate(worker, from_attributes=True) for worker in workers]
    )


@router.get("/readyz/api", responses=problems(StoreUnreachable))
async def readyz_api(store: Store) -> ApiReadiness:
    """Whether this process can accept jobs: Redis answers. There may be no worker."""
    await store.ping()
    return ApiReadiness()


@router.get("/metrics", response_class=PrometheusText, responses=problems(StoreUnreachable))
async def metrics(store: Store, catalog: Catalog) -> Response:
    """For Prometheus: open jobs, what waits for each model, and the workers' speed."""
    return PrometheusText(await scrape(store, catalog))
