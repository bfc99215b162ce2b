"""The page for people: a few files, which ask the API as any client does."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.staticfiles import StaticFiles

router = APIRouter(include_in_schema=False)

_FOLDER = Path(__file__).parents[1] / "static"
_FILES = StaticFiles(directory=_FOLDER)
_HEADERS = {
    "Cache-Control": "no-cache",
    # a job's name or error that were markup could do nothing; and no other site may frame the page
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

PATHS = frozenset({"/", *(f"/static/{file.name}" for file in _FOLDER.iterdir())})


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
