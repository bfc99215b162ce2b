"""Routes of a job's images: one image, its preview, the contact sheet, the archive."""

from __future__ import annotations

from functools import partial
from hashlib import sha256
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from starlette.convertors import StringConvertor, register_url_convertor

from app.access.cost import IMAGES_IN_AN_ARCHIVE, IMAGES_ON_A_SHEET
from app.images.responses import PngResponse, ZipResponse, png_response, zip_response
from app.problems.problems import (
    STORE_AWAY,
    Expired,
    InvalidRequest,
    NoPreview,
    NotEnded,
    NotFinished,
    ResultsUnreachable,
    StoreFull,
    UnknownImage,
    UnknownJob,
    problems,
)
from app.routers.binary import NOT_MODIFIED, PNG, ZIP
from app.routers.dependencies import Caller, Cost, Images
from app.routers.jobs import JobId, client_gone
from worker.jobs.domain import MAX_INDEX

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["jobs"])

Index = Annotated[
    int,
    Path(
        ge=0,
        le=MAX_INDEX,
        description="Absolute index, `start` to `start + count - 1`",
        examples=[0],
    ),
]


_UNREACHABLE = (*STORE_AWAY, ResultsUnreachable)


class _Digits(StringConvertor):
    """Gives each image one path: to Python `1_0`, `00` and ` 0` are integers too."""

    # The end of a pattern also matches before a line break, so one is ruled out.
    regex = r"(?:0|[1-9][0-9]*)(?!\n)"


register_url_convertor("index", _Digits())


@router.get(
    "/images/{index:index}",
    response_class=PngResponse,
    responses=problems(
        UnknownJob, UnknownImage, InvalidRequest, NotFinished, Expired, *_UNREACHABLE
    )
    | NOT_MODIFIED
    | PNG,
)
async def get_image(
    job_id: JobId, index: Index, images: Images, caller: Caller, request: Request
) -> Response:
    """The PNG of one image. It never changes."""
    png, digest = await images.image(job_id, caller.sees, index)
    return png_response(request, png, digest, final=True)


@router.get(
    "/images/{index:index}/preview",
    description="What the network takes a running image for, after its latest step: x_0_hat, made "
    "when somebody asks. Later, the image.",
    response_class=PngResponse,
    responses=problems(
        UnknownJob, UnknownImage, InvalidRequest, NoPreview, Expired, *_UNREACHABLE, StoreFull
    )
    | NOT_MODIFIED
    | PNG,
)
async def get_preview(
    job_id: JobId, index: Index, images: Images, caller: Caller, request: Request
) -> Response:
    """Answer with x_0_hat of a running image, or with the finished image."""
    png, digest = await images.preview(job_id, caller.sees, index)
    return png_response(request, png, digest, final=False)


@router.get(
    "/grid",
    description="A contact sheet of the images finished so far, each in its place; at most 2048 "
    "pixels wide.",
    response_class=PngResponse,
    responses=problems(UnknownJob, NotFinished, Expired, *_UNREACHABLE) | NOT_MODIFIED | PNG,
)
async def get_grid(
    job_id: JobId, images: Images, caller: Caller, cost: Cost, request: Request
) -> Response:
    """Answer with the contact sheet of the images finished so far."""

    def pay(count: int) -> None:
        cost.spend(count / IMAGES_ON_A_SHEET)

    drawn = await images.grid(job_id, caller.sees, pay, partial(client_gone, request))
    if drawn is None:
        # The client has gone, so nobody reads the answer.
        return Response()
    png, final = drawn
    return png_response(request, png, sha256(png).hexdigest(), final=final)


@router.get(
    "/archive",
    response_class=ZipResponse,
    responses=problems(UnknownJob, NotEnded, NotFinished, Expired, *_UNREACHABLE)
    | NOT_MODIFIED
    | ZIP,
)
async def get_archive(
    job_id: JobId, images: Images, caller: Caller, cost: Cost, request: Request
) -> Response:
    """All finished images of a job that has ended, as a zip of `INDEX.png`. It never changes."""
    archive = await images.archive(job_id, caller.sees)
    cost.spend(len(archive) / IMAGES_IN_AN_ARCHIVE)
    return await zip_response(request, archive, name=job_id)
