"""Route of a job's events, sent as they happen."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Response
from pydantic import Field
from starlette.responses import StreamingResponse

from app.access.cost import IMAGES_IN_EVENTS
from app.events.preview_stream import MAX_IMAGES, PreviewStream
from app.events.stream import LAST_EVENT_ID_PATTERN, ReaderPosition
from app.events.watcher import WatchedJob
from app.operation.background import background
from app.problems.problems import (
    STORE_AWAY,
    InvalidRequest,
    TooManyStreams,
    UnknownImage,
    UnknownJob,
    problems,
)
from app.routers.dependencies import Caller, Cost, Previews, Watcher
from app.routers.jobs import JobId
from app.schemas.plain_numbers import PLAIN_INT
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
PreviewIndices = Annotated[
    list[Annotated[int, Field(ge=0, le=MAX_INDEX), PLAIN_INT]],
    Query(
        default_factory=list,
        max_length=MAX_IMAGES,
        description="Index of an image whose previews are to be told too; may be repeated",
        examples=[[0, 1]],
    ),
]

# nginx would hold events back.
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class EventStream(StreamingResponse):
    """A response of server-sent events, which are formatted already.

    FastAPI's own formats every event anew for every reader, and can no longer answer 204.
    """

    media_type = "text/event-stream"


_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Events `state`, `image`, `progress` and `preview`, whose `data` is JSON: "
        "`StateEvent`, `ImageEvent`, `ProgressEvent`, `PreviewEvent`. The final state is the last "
        "one. Comments keep a silent stream open",
        "content": {
            # Of an event's data. OpenAPI 3.1 has no word for the stream, and generators check.
            "text/event-stream": {"schema": {"$ref": "#/components/schemas/JobEvent"}}
        },
    },
    204: {
        "description": "`Last-Event-ID` says that the final state was received: nothing is to come"
    },
}


_DESCRIPTION = (
    "What happens to a job, as server-sent events, from its beginning or from `Last-Event-ID` on."
    "\n\n"
    "Every state and every image is told once. Of progress, the newest, and only when it has "
    "changed: 0.1 s old at most,\n"
    "more where hundreds are read. Of the images that `preview` names, what they look like so far, "
    "about twice a second."
)


async def _watched_job(
    job_id: JobId, watcher: Watcher, caller: Caller, cost: Cost
) -> AsyncIterator[WatchedJob]:
    """Watch the job until the answer has ended or its client has gone."""
    async with watcher.follow(job_id, caller.sees) as job:
        cost.spend(len(job.digests) / IMAGES_IN_EVENTS)
        yield job


Watched = Annotated[WatchedJob, Depends(_watched_job)]


async def _preview_stream(
    job: Watched, previews: Previews, preview: PreviewIndices
) -> AsyncIterator[PreviewStream]:
    """Fetch previews of the images that the client names, for as long as the answer goes on."""
    stream = PreviewStream(previews, job, preview)
    async with background(*[stream.run()] if preview else []):
        yield stream


@router.get(
    "/{job_id}/events",
    description=_DESCRIPTION,
    response_class=EventStream,
    responses=problems(UnknownJob, UnknownImage, InvalidRequest, TooManyStreams, *STORE_AWAY)
    | _STREAM,
)
async def get_events(
    job: Watched,
    previews: Annotated[PreviewStream, Depends(_preview_stream)],
    last_event_id: LastEventId = None,
) -> Response:
    """Answer with a stream of the job's events, or with 204 where none is to come."""
    position = ReaderPosition.parse(last_event_id) if last_event_id else ReaderPosition()
    if position.at_end:
        return Response(status_code=204)
    return EventStream(job.events(position, previews.take), headers=_HEADERS)
