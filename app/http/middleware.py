"""Steps of every request: a limit on its body, HEAD as GET, headers of every answer."""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.problems.exception_handlers import render
from app.problems.problems import BodyTooLarge

# Nobody reads a body of these. An error raised while a handler waits for the client to leave
# would be taken for the client's leaving.
_WITHOUT_BODY = {"GET", "HEAD"}


class BodyLimit:
    """Refuses to read more than `max_bytes` of a body, whatever its Content-Length.

    FastAPI's own `max_body_size` answers in text/plain, even where a handler for its error is set.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a body whose declared length is too large, and count the bytes of any other.

        Raises:
            BodyTooLarge: the body turns out to be too large while it is read.
        """
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif self._is_declared_too_large(scope):
            await render(BodyTooLarge(self.max_bytes))(scope, receive, send)
        elif scope["method"] in _WITHOUT_BODY:
            await self.app(scope, receive, send)
        else:
            await self.app(scope, self._counted(receive), send)

    def _is_declared_too_large(self, scope: Scope) -> bool:
        declared = Headers(scope=scope).get("content-length", "")
        return declared.isdecimal() and int(declared) > self.max_bytes

    def _counted(self, receive: Receive) -> Receive:
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.max_bytes:
                raise BodyTooLarge(self.max_bytes)
            return message

        return counted


class HeadAsGet:
    """Routes HEAD as GET, and ends the answer after its headers.

    A stream of events would otherwise go on for nobody.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on, as GET if it is HEAD."""
        if scope.get("method") == "HEAD":
            scope = {**scope, "method": "GET"}
            send = _without_body(send)
        await self.app(scope, receive, send)


def _without_body(send: Send) -> Send:
    """Return a `send` that passes on the headers, then an empty body, then nothing."""
    ended = False

    async def only_headers(message: Message) -> None:
        nonlocal ended
        if not ended:
            ended = message["type"] == "http.response.body"
            await send({"type": "http.response.body"} if ended else message)

    return only_headers


class AnswerHeaders:
    """Adds what keeps answers from being mistaken or kept by others.

    No browser guesses at the type of what it gets. No cache keeps JSON, which is somebody's own and
    soon out of date, unless the route says that it may.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on, and add headers to its answer."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                add_headers(MutableHeaders(scope=message))
            await send(message)

        await self.app(scope, receive, with_headers)


def add_headers(headers: MutableHeaders) -> None:
    """Add what `AnswerHeaders` adds."""
    sent = dict(headers.raw)
    if b"x-content-type-options" not in sent:
        headers.raw.append((b"x-content-type-options", b"nosniff"))
    if b"json" in sent.get(b"content-type", b"") and b"cache-control" not in sent:
        headers.raw.append((b"cache-control", b"no-store"))
