"""The pages for people: a few files, which ask the API as any client does."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.staticfiles import StaticFiles

from app.access.public_paths import PAGE_PATHS
from app.problems.problems import UnknownRoute

router = APIRouter(include_in_schema=False)

FOLDER = Path(__file__).parents[1] / "static"
_FILES = StaticFiles(
    directory=FOLDER, check_dir=False, packages=[("fastapi_offline", "static")]
)  # does not import it
# what a model or an error is called could do nothing if it were markup; and no other site may frame the page
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_POLICY_OF_DOCS = _POLICY.replace(
    "img-src 'self'", "img-src 'self' data:"
)  # the icons in Swagger's style sheet
_HEADERS = {
    "Accept-Ranges": "none",
    "Cache-Control": "no-cache",
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@router.get("/")
async def page(request: Request) -> Response:
    return await _file(request, "index.html")


@router.get("/docs")
async def docs(request: Request) -> Response:
    response = await _file(request, "docs.html")
    response.headers["Content-Security-Policy"] = _POLICY_OF_DOCS
    return response


@router.get("/static/{name}")
async def file(request: Request, name: str) -> Response:
    if f"/static/{name}" not in PAGE_PATHS:
        raise UnknownRoute(request.url.path)
    return await _file(request, name)


async def _file(request: Request, name: str) -> Response:
    """Whole, or 304 where the client has it."""
    scope = request.scope
    scope["headers"] = [
        header for header in scope["headers"] if header[0] != b"range"
    ]  # Starlette answers one in text/plain
    response = await _FILES.get_response(name, scope)
    response.headers.update(_HEADERS)
    return response
