"""What every request goes through: a limit on its body, and HEAD for whatever answers GET."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.problems.exception_handlers import render
from app.problems.problems import BodyTooLarge

_WITHOUT_BODY = {
    "GET",
    "HEAD",
}  # nobody reads one: an error where somebody waits for the client to leave would be taken for that


class BodyLimit:
    """Refuses to read more than `max_bytes`, whatever Content-Length says or does not say.

    FastAPI's own `max_body_size` answers in text/plain, even where a handler for its error is set.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif self._is_declared_too_large(scope):
            await render(BodyTooLarge(self.max_bytes))(scope, receive, send)
        else:
            await self.app(
                scope, receive if scope["method"] in _WITHOUT_BODY else self._counted(receive), send
            )

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
    """Routes HEAD as GET, and ends the answer behind its headers: a stream would go on for nobody."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("method") == "HEAD":
            scope, send = {**scope, "method": "GET"}, _without_body(send)
        await self.app(scope, receive, send)


def _without_body(send: Send) -> Send:
    ended = False

    async def only_headers(message: Message) -> None:
        nonlocal ended
        if not ended:
            ended = message["type"] == "http.response.body"
            await send({"type": "http.response.body"} if ended else message)

    return only_headers
