"""The request that is at hand: its id and its place in a trace."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextvars import ContextVar

from worker.jobs.domain import Origin

_ID = re.compile(rb"[\x21-\x7e]{1,128}")
# https://www.w3.org/TR/trace-context/: later versions may add fields, version ff is none.
_TRACEPARENT = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
    rb"(-[\x21-\x7e]{1,64})?"
)
_NONE = Origin()
# Of the request that this task answers.
ORIGIN: ContextVar[Origin] = ContextVar("origin", default=_NONE)


def new_request_id() -> str:
    """Return an id that no other request has."""
    return os.urandom(12).hex()


def origin_of(headers: Iterable[tuple[bytes, bytes]]) -> Origin:
    """Return the id and the trace that the headers name, and a new id if they name none.

    What is no id of 1 to 128 visible ASCII characters, or no traceparent, counts as none.
    """
    request_id = traceparent = b""
    for name, value in headers:
        if name == b"x-request-id" and _ID.fullmatch(value):
            request_id = value
        elif name == b"traceparent" and _TRACEPARENT.fullmatch(value):
            traceparent = value
    return Origin(request_id.decode() or new_request_id(), traceparent.decode())
