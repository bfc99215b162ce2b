"""Routes of jobs: post, list, read, cancel, delete."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.models import Example
from fastapi.routing import APIRoute

from app.access.api_keys import NAME, Scope
from app.access.cost import RECORDS
from app.jobs.commands import JobCommands
from app.problems.problems import (
    STORE_AWAY,
    BodyTooLarge,
    BrokenBody,
    Forbidden,
    InvalidRequest,
    KeyReused,
    NotOnDisk,
    QueueFull,
    QuotaExceeded,
    StoreFull,
    TooManyBytes,
    TooManyJobs,
    TooManyStreams,
    UnknownJob,
    WrongContentEncoding,
    WrongContentType,
    problems,
)
from app.records.cursor import CURSOR_PATTERN, Cursor
from app.records.links import job_path
from app.routers.dependencies import Caller, Commands, Cost, Queries, json_only
from app.schemas.jobs import JOB_EXAMPLE, IdempotencyKey, Job, JobPage, JobRequest
from app.schemas.plain_numbers import PLAIN_FLOAT, PLAIN_INT
from worker.jobs.domain import ANY_OWNER, State


class _KeyFirst(APIRoute):
    """Looks an Idempotency-Key up before it refuses a body.

    A version that knows a field no more, or bounds it closer, still owes the client its job.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler, with the question for the key where it refuses."""
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as refused:
                posted = await _posted_before(request, refused)
                if posted is None:
                    raise
                return posted

        return handler


router = APIRouter(
    prefix="/v1/jobs", tags=["jobs"], responses=problems(*STORE_AWAY), route_class=_KeyFirst
)

# Below the 60 s after which nginx and others give a silent server up.
_LONGEST_WAIT_S = 50.0

JobId = Annotated[str, Path(description="The job's `id`", examples=[JOB_EXAMPLE])]
Wait = Annotated[
    float,
    Query(
        ge=0,
        le=60,
        allow_inf_nan=False,
        description="Answer at the next change of state, after this many seconds at most; after "
        "50 in any case, as proxies give up at 60",
    ),
    PLAIN_FLOAT,
]
OfState = Annotated[
    State | None, Query(description="Only jobs in this state", examples=["running"])
]
Limit = Annotated[
    int, Query(ge=1, le=100, description="Jobs a page, at most", examples=[20]), PLAIN_INT
]
OfOwner = Annotated[
    str | None,
    Query(
        pattern=f"^{NAME.pattern}$",
        description="Whose jobs; other names than the key's own are for an operator's key",
        examples=["ann"],
    ),
]
CursorText = Annotated[
    str | None, Query(pattern=CURSOR_PATTERN, description="`next_cursor` of the page before")
]

# Whole bodies: of the fields' own examples, not all go together.
_BODIES: dict[str, Example] = {
    "sixteen images": {"value": {"count": 16, "seed": 7}},
    "fast": {"value": {"count": 16, "seed": 7, "sampler": "ddim", "steps": 20, "eta": 0.0}},
}
_BAD_REQUESTS = (
    BrokenBody,
    BodyTooLarge,
    WrongContentType,
    WrongContentEncoding,
    InvalidRequest,
    KeyReused,
)
_REFUSALS = (QuotaExceeded, TooManyJobs, TooManyBytes, QueueFull, NotOnDisk, *STORE_AWAY, StoreFull)
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
    response_model=Job,
    dependencies=[Depends(json_only)],
    responses=problems(*_BAD_REQUESTS, *_REFUSALS) | {202: _ACCEPTED},
)
async def create_job(
    request: Annotated[JobRequest, Body(openapi_examples=_BODIES)],
    commands: Commands,
    caller: Caller,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Queue a sampling job. Poll the `Location` header until its state is final."""
    job, status = await commands.submit(request, caller.name, idempotency_key, caller.bounds)
    return _accepted(job, status)


def _accepted(job: str, status: bytes) -> Response:
    location = {"Location": job_path(job)}
    return Response(status, 202, location, media_type="application/json")


async def _posted_before(request: Request, refused: RequestValidationError) -> Response | None:
    """Return the answer to a refused body whose Idempotency-Key has posted a job with it."""
    key = request.headers.get("idempotency-key")
    of_body = all(error["loc"][0] == "body" for error in refused.errors())
    if key is None or not of_body or not isinstance(refused.body, dict):
        return None
    commands: JobCommands = request.app.state.commands
    posted = await commands.find_refused(refused.body, request.state.key.name, key)
    return posted and _accepted(*posted)


@router.get("", responses=problems(InvalidRequest, Forbidden))
async def list_jobs(
    queries: Queries,
    caller: Caller,
    cost: Cost,
    state: OfState = None,
    limit: Limit = 20,
    cursor: CursorText = None,
    owner: OfOwner = None,
) -> JobPage:
    """Your jobs, newest first; an operator's key lists other owners' too."""
    if owner not in (None, caller.name) and caller.sees != ANY_OWNER:
        raise Forbidden(Scope.OPERATE, caller.scopes)
    after = Cursor.parse(cursor) if cursor else None
    page, records = await queries.page(owner or caller.name, state, limit, after)
    cost.owe(records / RECORDS)
    return page


# app/routers/fast_status.py answers what comes without a query.
@router.get(
    "/{job_id}", response_model=Job, responses=problems(UnknownJob, InvalidRequest, TooManyStreams)
)
async def get_job(
    job_id: JobId,
    queries: Queries,
    caller: Caller,
    request: Request,
    wait: Wait = 0,
) -> Response:
    """A job as it stands now or, with `wait`, at its next change of state."""
    seconds = min(wait, _LONGEST_WAIT_S)
    status = await queries.wait(job_id, caller.sees, seconds, partial(client_gone, request))
    return Response(status, media_type="application/json")


@router.post("/{job_id}/cancel", responses=problems(UnknownJob, StoreFull))
async def cancel_job(job_id: JobId, commands: Commands, caller: Caller) -> Job:
    """Stop within one step. Images that are finished stay; a job that has ended stays as it is."""
    return await commands.cancel(job_id, caller.sees)


@router.delete("/{job_id}", status_code=204, responses=problems(UnknownJob, StoreFull))
async def delete_job(job_id: JobId, commands: Commands, caller: Caller) -> None:
    """Cancel the job, and remove it and its images."""
    await commands.delete(job_id, caller.sees)
