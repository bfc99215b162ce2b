"""Routes of jobs: post, list, read, cancel, delete."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from app.problems.problems import (
    BodyTooLarge,
    BrokenBody,
    InvalidRequest,
    KeyReused,
    NotOnDisk,
    QueueFull,
    QuotaExceeded,
    StoreFull,
    StoreUnreachable,
    UnknownJob,
    WrongContentType,
    problems,
)
from app.records.cursor import CURSOR_PATTERN, Cursor
from app.routers.dependencies import Caller, Commands, Queries, json_only
from app.schemas.jobs import JOB_EXAMPLE, IdempotencyKey, Job, JobPage, JobRequest
from worker.jobs.domain import State

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=problems(StoreUnreachable))

JobId = Annotated[str, Path(description="The job's `id`", examples=[JOB_EXAMPLE])]
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

_BAD_REQUESTS = (BrokenBody, BodyTooLarge, WrongContentType, InvalidRequest, KeyReused)
_REFUSALS = (QuotaExceeded, QueueFull, NotOnDisk, StoreUnreachable, StoreFull)
_ACCEPTED = {
    "description": "Accepted; to be polled at `Location`",
    "headers": {"Location": {"description": "Path of the job", "schema": {"type": "string"}}},
}


async def client_gone(request: Request) -> None:
    """Return when the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


@router.post(
    "",
    status_code=202,
    dependencies=[Depends(json_only)],
    responses=problems(*_BAD_REQUESTS, *_REFUSALS) | {202: _ACCEPTED},
)
async def create_job(
    request: JobRequest,
    commands: Commands,
    caller: Caller,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Job:
    """Queue a sampling job. Poll the `Location` header until its state is final."""
    job = await commands.submit(request, caller.name, idempotency_key)
    response.headers["Location"] = job.links["self"]
    return job


@router.get("", responses=problems(InvalidRequest))
async def list_jobs(
    queries: Queries,
    caller: Caller,
    state: OfState = None,
    limit: Limit = 20,
    cursor: CursorText = None,
) -> JobPage:
    """Your jobs, newest first."""
    return await queries.page(caller.name, state, limit, Cursor.parse(cursor) if cursor else None)


# app/routers/fast_status.py answers what comes without a query.
@router.get("/{job_id}", response_model=Job, responses=problems(UnknownJob, InvalidRequest))
async def get_job(
    job_id: JobId, queries: Queries, caller: Caller, request: Request, wait: Wait = 0
) -> Response:
    """A job as it stands now or, with `wait`, at its next change of state."""
    status = await queries.wait(job_id, caller.name, wait, partial(client_gone, request))
    return Response(status, media_type="application/json")


@router.post("/{job_id}/cancel", responses=problems(UnknownJob, StoreFull))
async def cancel_job(job_id: JobId, commands: Commands, caller: Caller) -> Job:
    """Stop within one step. Images that are finished stay; a job that has ended stays as it is."""
    return await commands.cancel(job_id, caller.name)


@router.delete("/{job_id}", status_code=204, responses=problems(UnknownJob, StoreFull))
async def delete_job(job_id: JobId, commands: Commands, caller: Caller) -> None:
    """Cancel the job, and remove it and its images."""
    await commands.delete(job_id, caller.name)
