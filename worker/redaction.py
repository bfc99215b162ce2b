"""What may be told of errors and URLs: no paths, no passwords, no tokens."""

from __future__ import annotations

import re

_LONGEST = 200
_PATH = re.compile(r"\S*[/\\]\S*")


def client_reason(error: BaseException) -> str:
    """Its type and the first line of its text, without what looks like a path or a URL, at most 200 characters."""
    line = _PATH.sub("…", str(error).strip().partition("\n")[0])
    text = f"{type(error).__name__}: {line}" if line else type(error).__name__
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def without_secrets(url: str) -> str:
    """Less what stands before an @, where passwords are, and after a question mark, where tokens are."""
    return re.sub(r"^([\w+.:-]*://)?.*@", r"\1***@", url, flags=re.DOTALL).partition("?")[0]
