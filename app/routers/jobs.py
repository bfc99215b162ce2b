from __future__ import annotations

from functools import partial
from hashlib import sha256
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from starlette.convertors import StringConvertor, register_url_convertor

from app.images.responses import PngResponse, ZipResponse, png_response, zip_response
from app.problems.problems import (
    BodyTooLarge,
    BrokenBody,
    Expired,
    InvalidRequest,
    KeyReused,
    NoPreview,
    NotEnded,
    NotFinished,
    NotOnDisk,
    QueueFull,
    QuotaExceeded,
    ResultsUnreachable,
    StoreFull,
    StoreUnreachable,
    UnknownImage,
    UnknownJob,
    WrongContentType,
    problems,
)
from app.records.cursor import CURSOR_PATTERN, Cursor
from app.routers.dependencies import Jobs, Key, json_only
from app.schemas.jobs import JOB_EXAMPLE, IdempotencyKey, Job, JobPage, JobRequest
from worker.jobs.domain import MAX_INDEX, State

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=problems(StoreUnreachable))

JobId = Annotated[str, Path(description="The job's `id`", examples=[JOB_EXAMPLE])]
Index = Annotated[
    int,
    Path(
        ge=0,
        le=MAX_INDEX,
        description="Absolute index, `start` to `start + count - 1`",
        examples=[0],
    ),
]
Wait = Annotated[
    float,
    Query(
        ge=0,
        le=60,
        allow_inf_nan=False,
        description="Answer at the next change of state, after this many seconds at most",
    ),
]
OfState = Annotated[
    State | None, Query(description="Only jobs in this state", examples=["running"])
]
Limit = Annotated[int, Query(ge=1, le=100, description="Jobs a page, at most", examples=[20])]
CursorText = Annotated[
    str | None, Query(pattern=CURSOR_PATTERN, description="`next_cursor` of the page before")
]

_UNREACHABLE = (
    StoreUnreachable,
    ResultsUnreachable,
)  # both, since a route's 503 hides its router's
_REFUSED = (QuotaExceeded, QueueFull, NotOnDisk, StoreUnreachable)
_NOT_MODIFIED: dict[int | str, dict[str, Any]] = {
    304: {"description": "`If-None-Match` has its ETag"}
}
_ACCEPTED = {
    "description": "Accepted; to be polled at `Location`",
    "headers": {"Location": {"description": "Path of the job", "schema": {"type": "string"}}},
}


class _Digits(StringConvertor):
    """One picture, one path: to Python `1_0`, `00` and ` 0` are integers too."""

    regex = r"(?:0|[1-9][0-9]*)(?!\n)"  # a pattern's end also matches before a line's


register_url_convertor("index", _Digits())


@router.post(
    "",
    status_code=202,
    dependencies=[Depends(json_only)],
    responses=problems(
        BrokenBody, BodyTooLarge, WrongContentType, InvalidRequest, KeyReused, *_REFUSED, StoreFull
    )
    | {202: _ACCEPTED},
)
async def create_job(
    request: JobRequest,
    jobs: Jobs,
    key: Key,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Job:
    """Queue a sampling job. Poll the `Location` header until its state is final."""
    job = await jobs.submit(request, key.name, idempotency_key)
    response.headers["Location"] = job.links["self"]
    return job


@router.get("", responses=problems(InvalidRequest))
async def list_jobs(
    jobs: Jobs, key: Key, state: OfState = None, limit: Limit = 20, cursor: CursorText = None
) -> JobPage:
    """Your jobs, newest first."""
    return await jobs.page(key.name, state, limit, Cursor.parse(cursor) if cursor else None)


@router.get("/{job_id}", response_model=Job, responses=problems(UnknownJob, InvalidRequest))
async def get_job(
    job_id: JobId, jobs: Jobs, key: Key, request: Request, wait: Wait = 0
) -> Response:
    """A job as it stands now or, with `wait`, at its next change of state."""
    # app/routers/fast_status.py answers what comes without a query.
    return Response(
        await jobs.wait(job_id, key.name, wait, partial(_left, request)),
        media_type="application/json",
    )


async def _left(request: Request) -> None:
    """Returns when the client closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


@router.get(
    "/{job_id}/images/{index:index}",
    response_class=PngResponse,
    responses=problems(
        UnknownJob, UnknownImage, InvalidRequest, NotFinished, Expired, *_UNREACHABLE
    )
    | _NOT_MODIFIED,
)
async def get_image(
    job_id: JobId, index: Index, jobs: Jobs, key: Key, request: Request
) -> Response:
    """The PNG of one image. It never changes."""
    png, digest = await jobs.image(job_id, key.name, index)
    return png_response(request, png, digest, final=True)


@router.get(
    "/{job_id}/images/{index:index}/preview",
    response_class=PngResponse,
    responses=problems(
        UnknownJob, UnknownImage, InvalidRequest, NoPreview, Expired, *_UNREACHABLE, StoreFull
    )
    | _NOT_MODIFIED,
)
async def get_preview(
    job_id: JobId, index: Index, jobs: Jobs, key: Key, request: Request
) -> Response:
    """What the network takes a running image for, after its latest step: x_0_hat, made when somebody asks. Later, the image."""
    png, digest = await jobs.preview(job_id, key.name, index)
    return png_response(request, png, digest, final=False)


@router.get(
    "/{job_id}/grid",
    response_class=PngResponse,
    responses=problems(UnknownJob, NotFinished, Expired, *_UNREACHABLE) | _NOT_MODIFIED,
)
async def get_grid(job_id: JobId, jobs: Jobs, key: Key, request: Request) -> Response:
    """A contact sheet of the images finished so far, each in its place; at most 2048 pixels wide."""
    drawn = await jobs.grid(job_id, key.name, partial(_left, request))
    if drawn is None:
        return Response()  # to nobody
    png, final = drawn
    return png_response(request, png, sha256(png).hexdigest(), final=final)


@router.get(
    "/{job_id}/archive",
    response_class=ZipResponse,
    responses=problems(UnknownJob, NotEnded, NotFinished, Expired, *_UNREACHABLE) | _NOT_MODIFIED,
)
async def get_archive(job_id: JobId, jobs: Jobs, key: Key, request: Request) -> Response:
    """All finished images of a job that has ended, as a zip of `INDEX.png`. It never changes."""
    return await zip_response(request, await jobs.archive(job_id, key.name), name=job_id)


@router.post("/{job_id}/cancel", responses=problems(UnknownJob, StoreFull))
async def cancel_job(job_id: JobId, jobs: Jobs, key: Key) -> Job:
    """Stop within one step. Images that are finished stay; a job that has ended stays as it is."""
    return await jobs.cancel(job_id, key.name)


@router.delete("/{job_id}", status_code=204, responses=problems(UnknownJob, StoreFull))
async def delete_job(job_id: JobId, jobs: Jobs, key: Key) -> None:
    """Cancel the job, and remove it and its images."""
    await jobs.delete(job_id, key.name)
