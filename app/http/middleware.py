"""Steps of every request: what its body may be, HEAD as GET, headers of every answer."""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.problems.exception_handlers import render
from app.problems.problems import BodyTooLarge, Problem, WrongContentEncoding

# Nobody reads a body of these. An error raised while a handler waits for the client to leave
# would be taken for the client's leaving.
_WITHOUT_BODY = {"GET", "HEAD"}
_UNENCODED = {"", "identity"}


class BodyLimit:
    """Refuses to read a compressed body, or more than `max_bytes` of one.

    FastAPI's own `max_body_size` answers in text/plain, even where a handler for its error is set.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a body by what is declared of it, and count the bytes of any other.

        Raises:
            BodyTooLarge: the body turns out to be too large while it is read.
        """
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif problem := self._by_what_is_declared(scope):
            await render(problem)(scope, receive, send)
        elif scope["method"] in _WITHOUT_BODY:
            await self.app(scope, receive, send)
        else:
            await self.app(scope, self._counted(receive), send)

    def _by_what_is_declared(self, scope: Scope) -> Problem | None:
        headers = Headers(scope=scope)
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.max_bytes:
            return BodyTooLarge(self.max_bytes)
        encoding = headers.get("content-encoding", "")
        if encoding.strip().lower() in _UNENCODED:
            return None
        return WrongContentEncoding(encoding)

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
