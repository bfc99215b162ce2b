"""What handlers ask for, under short names. All are coroutines: FastAPI would call each plain function in a thread."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import Depends
from redis.asyncio import Redis
from starlette.requests import Request

from app.access import api_keys
from app.events import watcher
from app.jobs import jobs
from app.problems.problems import WrongContentType
from models.checkpoints import catalog


async def _jobs(request: Request) -> jobs.Jobs:
    return cast("jobs.Jobs", request.app.state.jobs)


async def _catalog(request: Request) -> catalog.Catalog:
    return cast("catalog.Catalog", request.app.state.catalog)


async def _redis(request: Request) -> Redis:
    return cast("Redis", request.app.state.redis)


async def _watch(request: Request) -> watcher.EventWatcher:
    return cast("watcher.EventWatcher", request.app.state.watcher)


async def _key(request: Request) -> api_keys.ApiKey:
    """Set by app/access/gate.py."""
    return cast("api_keys.ApiKey", request.state.key)


async def json_only(request: Request) -> None:
    """FastAPI would say of any other type that the body is no object."""
    sent = request.headers.get("content-type")
    kind = (sent or "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (
        kind.startswith("application/") and kind.endswith("+json")
    ):
        raise WrongContentType(sent)


Jobs = Annotated[jobs.Jobs, Depends(_jobs)]
Catalog = Annotated[catalog.Catalog, Depends(_catalog)]
Store = Annotated[Redis, Depends(_redis)]
Watch = Annotated[watcher.EventWatcher, Depends(_watch)]
Key = Annotated[api_keys.ApiKey, Depends(_key)]
