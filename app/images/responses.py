"""Pictures as HTTP has them: cached, and compared by their hash."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping

from redis import exceptions as redis
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from app.images.archive import Archive
from app.problems.problems import Problem

log = logging.getLogger(__name__)
_FINAL = "private, max-age=31536000, immutable"


class PngResponse(Response):
    media_type = "image/png"


class ZipResponse(StreamingResponse):
    media_type = "application/zip"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What ends it early closes the connection, so that nobody takes a part for the whole."""
        try:
            await super().__call__(scope, receive, send)
        except (Problem, redis.ConnectionError, redis.TimeoutError) as error:
            log.warning(
                "an archive breaks off while it is sent: %s", getattr(error, "detail", error)
            )
        except (
            asyncio.CancelledError
        ):  # of a reader that has had the time that a server which stops leaves it
            log.warning("an archive breaks off while it is sent: the API stops")


def png_response(request: Request, png: bytes, sha256: str, *, final: bool) -> Response:
    """304 without the bytes where the client has them. `final`: they can never change."""
    headers = _headers(sha256, final)
    return _not_modified(request, headers) or PngResponse(png, headers=headers)


async def zip_response(request: Request, archive: Archive, name: str) -> Response:
    """304 as `png_response`. Raises what `Archive.parts` raises at its beginning, also where the client has the archive."""
    headers = {
        **_headers(archive.sha256, final=True),
        "Content-Disposition": f'attachment; filename="{name}.zip"',
    }
    parts = archive.parts()
    first = await anext(parts)
    return _not_modified(request, headers) or ZipResponse(_again(first, parts), headers=headers)


async def _again(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for part in rest:
        yield part


def _headers(sha256: str, final: bool) -> dict[str, str]:
    return {"ETag": f'"{sha256}"', "Cache-Control": _FINAL if final else "no-cache"}


def _not_modified(request: Request, headers: Mapping[str, str]) -> Response | None:
    """RFC 9110, 13.1.2: a list of tags, compared weakly, or a star."""
    tags = [
        tag.strip().removeprefix("W/")
        for tag in request.headers.get("if-none-match", "").split(",")
    ]
    return (
        Response(status_code=304, headers=headers)
        if "*" in tags or headers["ETag"] in tags
        else None
    )
