"""Answers of bytes, as the OpenAPI document has them."""

from __future__ import annotations

from typing import Any


def _binary(media_type: str) -> dict[int | str, dict[str, Any]]:
    """Return the response 200 of bytes, as generators of clients know it."""
    schema = {"type": "string", "format": "binary"}
    return {200: {"content": {media_type: {"schema": schema}}}}


PNG, ZIP = _binary("image/png"), _binary("application/zip")
NOT_MODIFIED: dict[int | str, dict[str, Any]] = {
    304: {"description": "`If-None-Match` has its ETag"}
}
