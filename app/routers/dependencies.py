"""Names what handlers ask for, as `Annotated` aliases.

All dependencies are coroutines: FastAPI would call each plain function in a thread.
"""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import Depends
from redis.asyncio import Redis
from starlette.requests import Request

from app.access.api_keys import ApiKey
from app.access.cost import CostMeter
from app.access.signed_links import LinkSigner
from app.access.streams import OpenStreams
from app.events.previews import PreviewReader
from app.events.watcher import EventWatcher
from app.jobs.commands import JobCommands
from app.jobs.images import JobImages
from app.jobs.queries import JobQueries
from app.operation.api_metrics import ApiMetrics
from app.operation.readiness import WriteProbe
from app.problems.problems import Stopping, WrongContentType
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


async def _metrics(request: Request) -> ApiMetrics:
    return cast("ApiMetrics", request.app.state.metrics)


async def _write_probe(request: Request) -> WriteProbe:
    return cast("WriteProbe", request.app.state.write_probe)


async def _caller(request: Request) -> ApiKey:
    """Return the key that app/access/gate.py has found in the request."""
    return cast("ApiKey", request.state.key)


async def _meter(request: Request) -> CostMeter:
    """Return what app/access/gate.py counts the request's cost with."""
    return cast("CostMeter", request.state.meter)


async def _streams(request: Request) -> OpenStreams:
    return cast("OpenStreams", request.app.state.streams)


async def _links(request: Request) -> LinkSigner:
    return cast("LinkSigner", request.app.state.links)


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


async def not_stopping(request: Request) -> None:
    """Refuse to be called ready once the process was told to stop.

    Raises:
        Stopping: it was.
    """
    if request.app.state.stopping:
        raise Stopping


Commands = Annotated[JobCommands, Depends(_commands)]
Queries = Annotated[JobQueries, Depends(_queries)]
Images = Annotated[JobImages, Depends(_images)]
Previews = Annotated[PreviewReader, Depends(_previews)]
Watcher = Annotated[EventWatcher, Depends(_watcher)]
ModelCatalog = Annotated[Catalog, Depends(_catalog)]
RedisClient = Annotated[Redis, Depends(_redis)]
OwnMetrics = Annotated[ApiMetrics, Depends(_metrics)]
StoreProbe = Annotated[WriteProbe, Depends(_write_probe)]
Caller = Annotated[ApiKey, Depends(_caller)]
Cost = Annotated[CostMeter, Depends(_meter)]
Streams = Annotated[OpenStreams, Depends(_streams)]
Links = Annotated[LinkSigner, Depends(_links)]
