"""Images and archives as HTTP responses, with an ETag that is a sha256."""

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
from worker.logs import event

log = logging.getLogger(__name__)
_FINAL = "private, max-age=31536000, immutable"


class PngResponse(Response):
    """An image."""

    media_type = "image/png"


class ZipResponse(StreamingResponse):
    """An archive, sent while it is written."""

    media_type = "application/zip"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the archive.

        If it ends early the connection is closed, so that nobody takes a part for the whole.
        """
        try:
            await super().__call__(scope, receive, send)
        except (Problem, redis.ConnectionError, redis.TimeoutError) as error:
            reason = getattr(error, "detail", error)
            log.warning(
                "an archive breaks off while it is sent: %s", reason, extra=event("archive.broken")
            )
        except asyncio.CancelledError:
            # The server stops, and the reader has had the time that this leaves it.
            log.warning(
                "an archive breaks off while it is sent: the API stops",
                extra=event("archive.broken"),
            )


def png_response(request: Request, png: bytes, sha256: str, *, final: bool) -> Response:
    """Answer with a PNG, or with 304 where the client has it.

    Args:
        request: What is answered.
        png: The image.
        sha256: Its digest.
        final: Whether the image can never change.
    """
    headers = _headers(sha256, final)
    return not_modified(request, headers) or PngResponse(png, headers=headers)


async def zip_response(request: Request, archive: Archive, name: str) -> Response:
    """Answer with an archive, or with 304 where the client has it.

    The first part is read in either case, so an archive that is gone is an error for all.

    Raises:
        Expired: One of the first images is gone.
        ResultsUnreachable: The results store did not answer.
        redis.RedisError: Redis did not answer.
    """
    headers = {
        **_headers(archive.sha256, final=True),
        "Content-Disposition": f'attachment; filename="{name}.zip"',
    }
    parts = archive.parts()
    first = await anext(parts)
    return not_modified(request, headers) or ZipResponse(_chain(first, parts), headers=headers)


async def _chain(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for part in rest:
        yield part


def _headers(sha256: str, final: bool) -> dict[str, str]:
    return {"ETag": f'"{sha256}"', "Cache-Control": _FINAL if final else "no-cache"}


def not_modified(request: Request, headers: Mapping[str, str]) -> Response | None:
    """Answer with 304 if the client has what `headers` describe, by its `ETag`.

    `If-None-Match` is a list of tags or a star, may come in several lines, and is compared weakly
    (RFC 9110, 13.1.2).
    """
    sent = ",".join(request.headers.getlist("if-none-match"))
    tags = [tag.strip().removeprefix("W/") for tag in sent.split(",")]
    if "*" in tags or headers["ETag"] in tags:
        return Response(status_code=304, headers=headers)
    return None
