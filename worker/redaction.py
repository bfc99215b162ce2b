"""What a client is told of an error that ended a worker."""

from __future__ import annotations

import re

_LONGEST = 200
_PATH = re.compile(r"\S*[/\\]\S*")


def client_reason(error: BaseException) -> str:
    """Its type and the first line of its text, without what looks like a path or a URL, at most 200 characters."""
    line = _PATH.sub("…", str(error).strip().partition("\n")[0])
    text = f"{type(error).__name__}: {line}" if line else type(error).__name__
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
