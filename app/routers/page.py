"""Routes of the pages for people, and of the OpenAPI document.

The pages are a few files, which ask the API as any client does. Their links are relative, so that
they work under any path of a proxy.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request, Response
from starlette.staticfiles import StaticFiles

from app.access.public_paths import PAGE_PATHS
from app.images.responses import not_modified
from app.problems.problems import UnknownRoute
from app.records.links import ROOT_PATH

router = APIRouter(include_in_schema=False)

FOLDER = Path(__file__).parents[1] / "static"
# `packages` finds a package's files without importing it.
_FILES = StaticFiles(directory=FOLDER, check_dir=False, packages=[("fastapi_offline", "static")])
# The name of a model or the text of an error can do nothing, even if it were markup.
# No other site may frame the pages.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Swagger's style sheet has its icons inside.
_POLICY_OF_DOCS = _POLICY.replace("img-src 'self'", "img-src 'self' data:")
# Trusted proxies name them, so there are few.
_MOST_ROOT_PATHS = 16
_HEADERS = {
    "Accept-Ranges": "none",
    "Cache-Control": "no-cache",
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
}


@router.get("/")
async def page(request: Request) -> Response:
    """Answer with the page that samples and shows images."""
    return await _file(request, "index.html")


@router.get("/docs")
async def docs(request: Request) -> Response:
    """Answer with the API's reference, which Swagger UI shows."""
    response = await _file(request, "docs.html")
    response.headers["Content-Security-Policy"] = _POLICY_OF_DOCS
    return response


@router.get("/openapi.json")
async def openapi_json(request: Request) -> Response:
    """Answer with the API's description, or with 304 where the client has it."""
    text, etag = _document(request.app, ROOT_PATH.get())
    headers = {"Cache-Control": "no-cache", "ETag": etag}
    return not_modified(request, headers) or Response(
        text, media_type="application/json", headers=headers
    )


@router.get("/static/{name}")
async def file(request: Request, name: str) -> Response:
    """Answer with a file that the pages load.

    Raises:
        UnknownRoute: no page loads a file of this name.
    """
    if f"/static/{name}" not in PAGE_PATHS:
        raise UnknownRoute(request.url.path)
    return await _file(request, name)


def _document(app: FastAPI, root_path: str) -> tuple[bytes, str]:
    """Return the OpenAPI document under a root path, and its ETag. It is written once for each."""
    written: dict[str, tuple[bytes, str]] = app.state.openapi_json
    if root_path not in written:
        if len(written) == _MOST_ROOT_PATHS:
            written.clear()
        servers = {"servers": [{"url": root_path}]} if root_path else {}
        text = json.dumps(app.openapi() | servers, separators=(",", ":")).encode()
        written[root_path] = text, f'"{sha256(text).hexdigest()}"'
    return written[root_path]


async def _file(request: Request, name: str) -> Response:
    """Answer with the whole file, or with 304 where the client has it."""
    scope = request.scope
    # Starlette answers a bad Range in text/plain, and 304 for dates that are none: it sees neither.
    response = await _FILES.get_response(name, {**scope, "headers": []})
    response.headers.update(_HEADERS)
    # What a client has is told by the ETag alone.
    del response.headers["Last-Modified"]
    answer = not_modified(request, {"ETag": response.headers["ETag"], **_HEADERS}) or response
    # The response reads it while it is sent.
    scope["headers"] = [header for header in scope["headers"] if header[0] != b"range"]
    return answer
