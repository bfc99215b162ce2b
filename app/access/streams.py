"""Bounds the streams and waits that a key holds open at once."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Receive, Scope, Send

from app.problems.exception_handlers import render
from app.problems.problems import TooManyStreams


@dataclass(slots=True)
class OpenStreams:
    """The streams of events and waits that are open in this process.

    Attributes:
        most: How many a key may have open that has no limit of its own.
        of: How many it has, by the name of a known key. A key that has none open is not in it.
    """

    most: int
    of: Counter[str] = field(default_factory=Counter)


class StreamLimit:
    """Refuses a stream of events or a wait of a key that has as many open as it may.

    The rate limit counts either as one request, however long it is held. Each API process counts
    for itself, as the rate limit does.
    """

    def __init__(self, app: ASGIApp, streams: OpenStreams) -> None:
        self.app = app
        self._most = streams.most
        self._open = streams.of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on, and count it for as long as it is answered if it is held."""
        if not _is_held(scope):
            return await self.app(scope, receive, send)
        key = scope["state"]["key"]
        owner, most = key.name, key.max_streams or self._most
        if self._open[owner] >= most:
            return await render(TooManyStreams(most))(scope, receive, send)
        self._open[owner] += 1
        try:
            return await self.app(scope, receive, send)
        finally:
            self._open[owner] -= 1
            if not self._open[owner]:
                del self._open[owner]


def _is_held(scope: Scope) -> bool:
    """Return whether the request is a stream of events, or may wait."""
    if scope["type"] != "http" or not scope["path"].startswith("/v1/jobs/"):
        return False
    return scope["path"].endswith("/events") or b"wait=" in scope["query_string"]
