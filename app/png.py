"""PNGs as HTTP has them: cached, and compared by their hash."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

_FINAL = "private, max-age=31536000, immutable"


class PNG(Response):
    media_type = "image/png"


def png_response(request: Request, png: bytes, sha256: str, *, final: bool) -> Response:
    """304 without the bytes where the client has them. `final`: they can never change."""
    headers = {"ETag": f'"{sha256}"', "Cache-Control": _FINAL if final else "no-cache"}
    if _has(request.headers.get("if-none-match", ""), sha256):
        return Response(status_code=304, headers=headers)
    return PNG(png, headers=headers)


def _has(if_none_match: str, sha256: str) -> bool:
    """RFC 9110, 13.1.2: a list of tags, compared weakly, or a star."""
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in tags or f'"{sha256}"' in tags
