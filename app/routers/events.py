from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Response
from pydantic import Field
from starlette.responses import StreamingResponse

from app.events.preview_stream import MAX_IMAGES, PreviewStream
from app.events.stream import LAST_EVENT_ID_PATTERN, ReaderPosition
from app.events.watcher import WatchedJob
from app.operation.background import background
from app.problems.problems import (
    InvalidRequest,
    StoreUnreachable,
    UnknownImage,
    UnknownJob,
    problems,
)
from app.routers.dependencies import Jobs, Key, Watch
from app.routers.jobs import JobId
from worker.jobs.domain import MAX_INDEX

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

LastEventId = Annotated[
    str | None,
    Header(
        alias="Last-Event-ID",
        pattern=LAST_EVENT_ID_PATTERN,
        description="The last `id` that was received: the stream goes on behind it",
        examples=["2-1f"],
    ),
]


class EventStream(StreamingResponse):
    """Not FastAPI's own: that one serves generators, writes every event for every reader anew, and can no longer answer 204."""

    media_type = "text/event-stream"


_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx would hold events back


Shown = Annotated[
    list[Annotated[int, Field(ge=0, le=MAX_INDEX)]],
    Query(
        default_factory=list,
        max_length=MAX_IMAGES,
        description="Index of an image whose previews are to be told too; may be repeated",
        examples=[[0, 1]],
    ),
]


def _event(name: str, schema: str, has_id: bool = True) -> dict[str, Any]:
    """As OpenAPI 3.2 describes an event, and FastAPI one of its own."""
    data = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"$ref": f"#/components/schemas/{schema}"},
    }
    fields = {"event": {"const": name}, "data": data}
    if has_id:
        fields["id"] = {"type": "string", "pattern": LAST_EVENT_ID_PATTERN}
    return {"type": "object", "required": [*fields], "properties": fields}


_EVENTS = [
    _event("state", "StateEvent"),
    _event("image", "ImageEvent"),
    _event("progress", "Progress"),
    _event("preview", "PreviewEvent", has_id=False),
]
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Events `state`, `image`, `progress` and `preview`, whose `data` is JSON: `StateEvent`, `ImageEvent`, "
        "`Progress`, `PreviewEvent`. The final state is the last one. Comments keep a silent stream open",
        "content": {"text/event-stream": {"itemSchema": {"oneOf": _EVENTS}}},
    },
    204: {
        "description": "`Last-Event-ID` says that the final state was received: nothing is to come"
    },
}


async def _followed(job_id: JobId, watch: Watch, key: Key) -> AsyncIterator[WatchedJob]:
    """Until the answer has ended, or its client has gone."""
    async with watch.follow(job_id, key.name) as followed:
        yield followed


FollowedJob = Annotated[WatchedJob, Depends(_followed)]


async def _feed(followed: FollowedJob, jobs: Jobs, preview: Shown) -> AsyncIterator[PreviewStream]:
    feed = jobs.preview_feed(followed, preview)
    async with background(*[feed.run()] if preview else []):
        yield feed


@router.get(
    "/{job_id}/events",
    response_class=EventStream,
    responses=problems(UnknownJob, UnknownImage, InvalidRequest, StoreUnreachable) | _STREAM,
)
async def get_events(
    followed: FollowedJob,
    feed: Annotated[PreviewStream, Depends(_feed)],
    last_event_id: LastEventId = None,
) -> Response:
    """What happens to a job, as server-sent events, from its beginning or from `Last-Event-ID` on.

    Every state and every image is told once. Of progress, the newest, and only when it has changed: 0.1 s old at most,
    more where hundreds are read. Of the images that `preview` names, what they look like so far, about twice a second.
    """
    told = ReaderPosition.parse(last_event_id) if last_event_id else ReaderPosition()
    if told.at_end:
        return Response(status_code=204)
    return EventStream(followed.events(told, feed.take), headers=_HEADERS)
