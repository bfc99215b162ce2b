"""The page for people: a few files, which ask the API as any client does."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.staticfiles import StaticFiles

router = APIRouter(include_in_schema=False)

FOLDER = Path(__file__).parents[1] / "static"
_FILES = StaticFiles(directory=FOLDER, check_dir=False)
_HEADERS = {
    "Cache-Control": "no-cache",
    # what a model or an error is called could do nothing if it were markup; and no other site may frame the page
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

PATHS = frozenset(
    {"/", *(f"/static/{name}" for name in ("api.js", "icon.svg", "images.js", "job.js", "page.css", "page.js"))}
)  # all that the page consists of


@router.get("/")
async def page(request: Request) -> Response:
    return await _file(request, "index.html")


@router.get("/static/{name}")
async def file(request: Request, name: str) -> Response:
    return await _file(request, name)


async def _file(request: Request, name: str) -> Response:
    """304 where the client has it; 404 as for any unknown route."""
    response = await _FILES.get_response(name, request.scope)
    response.headers.update(_HEADERS)
    return response
