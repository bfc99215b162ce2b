"""Names what handlers ask for, as `Annotated` aliases.

All dependencies are coroutines: FastAPI would call each plain function in a thread.
"""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import Depends
from redis.asyncio import Redis
from starlette.requests import Request

from app.access.api_keys import ApiKey
from app.events.previews import PreviewReader
from app.events.watcher import EventWatcher
from app.jobs.commands import JobCommands
from app.jobs.images import JobImages
from app.jobs.queries import JobQueries
from app.problems.problems import WrongContentType
from models.checkpoints.catalog import Catalog


async def _commands(request: Request) -> JobCommands:
    return cast("JobCommands", request.app.state.commands)


async def _queries(request: Request) -> JobQueries:
    return cast("JobQueries", request.app.state.queries)


async def _images(request: Request) -> JobImages:
    return cast("JobImages", request.app.state.images)


async def _previews(request: Request) -> PreviewReader:
    return cast("PreviewReader", request.app.state.previews)


async def _watcher(request: Request) -> EventWatcher:
    return cast("EventWatcher", request.app.state.watcher)


async def _catalog(request: Request) -> Catalog:
    return cast("Catalog", request.app.state.catalog)


async def _redis(request: Request) -> Redis:
    return cast("Redis", request.app.state.redis)


async def _caller(request: Request) -> ApiKey:
    """Return the key that app/access/gate.py has found in the request."""
    return cast("ApiKey", request.state.key)


async def json_only(request: Request) -> None:
    """Refuse a body that is not declared as JSON.

    Of any other type FastAPI would say that the body is no object.

    Raises:
        WrongContentType: the type is missing, or another.
    """
    declared = request.headers.get("content-type")
    media_type = (declared or "").partition(";")[0].strip().lower()
    if media_type == "application/json":
        return
    if not (media_type.startswith("application/") and media_type.endswith("+json")):
        raise WrongContentType(declared)


Commands = Annotated[JobCommands, Depends(_commands)]
Queries = Annotated[JobQueries, Depends(_queries)]
Images = Annotated[JobImages, Depends(_images)]
Previews = Annotated[PreviewReader, Depends(_previews)]
Watcher = Annotated[EventWatcher, Depends(_watcher)]
ModelCatalog = Annotated[Catalog, Depends(_catalog)]
RedisClient = Annotated[Redis, Depends(_redis)]
Caller = Annotated[ApiKey, Depends(_caller)]
