"""Route of signed links to what a job has made, for those who have no key."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.responses import Response

from app.access.cost import LINKS
from app.access.signed_links import LONGEST_S, SHORTEST_S
from app.problems.problems import (
    STORE_AWAY,
    InvalidRequest,
    NoLinks,
    UnknownImage,
    UnknownJob,
    problems,
)
from app.records.links import ROOT_PATH
from app.routers.dependencies import Caller, Cost, Links, Queries
from app.routers.jobs import JobId
from app.schemas.links import ImageLink, SignedLinks
from app.schemas.plain_numbers import PLAIN_INT
from worker.jobs.domain import MAX_COUNT, MAX_INDEX

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["jobs"])

# They take a millisecond.
_AT_ONCE = 64
Ttl = Annotated[
    int,
    Query(
        ge=SHORTEST_S,
        le=LONGEST_S,
        description="Seconds that the links are good for, rounded up to whole minutes",
        examples=[3600],
    ),
    PLAIN_INT,
]
ImageIndices = Annotated[
    list[Annotated[int, Field(ge=0, le=MAX_INDEX), PLAIN_INT]],
    Query(
        default_factory=list,
        max_length=MAX_COUNT,
        description="Index of an image to link; may be repeated. None: all images of the job",
        examples=[[0, 1]],
    ),
]


@router.get(
    "/links",
    response_model=SignedLinks,
    responses=problems(UnknownJob, UnknownImage, NoLinks, InvalidRequest, *STORE_AWAY),
)
async def get_links(
    job_id: JobId,
    links: Links,
    queries: Queries,
    caller: Caller,
    cost: Cost,
    image: ImageIndices,
    ttl_s: Ttl = 3600,
) -> Response:
    """Links to the job's images, contact sheet, archive and events that need no key."""
    expires = links.expiry(ttl_s)
    record = await queries.record(job_id, caller.sees)
    for index in image:
        if index not in record.indices:
            raise UnknownImage(index, record.start, record.count)
    indices = image or record.indices
    cost.spend(len(indices) / LINKS)

    def signed(of: str) -> str:
        path = f"/v1/jobs/{job_id}/{of}"
        return f"{ROOT_PATH.get()}{path}?{links.sign(path, caller, expires)}"

    images = []
    for number, index in enumerate(indices, 1):
        images.append(ImageLink(index=index, url=signed(f"images/{index}")))
        if not number % _AT_ONCE:
            await asyncio.sleep(0)
    made = SignedLinks(
        expires_at=datetime.fromtimestamp(expires, UTC),
        events=signed("events"),
        grid=signed("grid"),
        archive=signed("archive"),
        images=images,
    )
    return Response(made.model_dump_json(), media_type="application/json")
