"""What may be shown of errors and URLs: no paths, no passwords, no tokens."""

from __future__ import annotations

import re

_MOST_CHARACTERS = 200
_PATH = re.compile(r"\S*[/\\]\S*")
_USER_INFO = re.compile(r"^([\w+.:-]*://)?.*@", flags=re.DOTALL)


def client_reason(error: BaseException) -> str:
    """Return an error's type and the first line of its text, at most 200 characters.

    Whatever looks like a path or a URL is left out.
    """
    line = _PATH.sub("…", str(error).strip().partition("\n")[0])
    text = f"{type(error).__name__}: {line}" if line else type(error).__name__
    return text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 1] + "…"


def without_secrets(url: str) -> str:
    """Return a URL without what stands before an @ or after a question mark.

    Passwords stand in the one place, tokens in the other.
    """
    return _USER_INFO.sub(r"\1***@", url).partition("?")[0]


def scheme_only(url: str) -> str:
    """Return the scheme of what may be a URL, and *** for the rest.

    A URL that cannot be parsed may hold its password anywhere.
    """
    scheme = re.match("[a-z+]+://", url)
    return f"{scheme[0] if scheme else ''}***"
