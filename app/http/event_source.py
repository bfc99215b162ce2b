"""Errors that end no browser's stream: `EventSource` gives up for good at any status but 200."""

from __future__ import annotations

import json
from random import randint

from fastapi.sse import format_sse_event
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# The store or the rate limit: the same request will be answered later.
_PASSING = {429, 503}
_LONGEST_MS = 60_000
_ACCEPTS_EVENTS = (b"accept", b"text/event-stream")


class EventSourceErrors:
    """Gives a browser's `EventSource` a passing error as an event, and ends the stream.

    The browser then comes back by itself, when the event's `retry` says. Every other client gets
    the status. docs/decisions/0042 says how the two are told apart.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on, and change its answer if it is such an error."""
        if scope["type"] == "http" and _is_event_source(scope):
            send = _with_errors_as_events(send)
        await self.app(scope, receive, send)


def _is_event_source(scope: Scope) -> bool:
    """Return whether a browser asks for a stream. Libraries that read events name themselves."""
    # Nearly no request has this header, and to look for a pair decodes nothing.
    if _ACCEPTS_EVENTS not in scope["headers"]:
        return False
    headers = Headers(scope=scope)
    wanted = headers.get("accept", "")
    return wanted == "text/event-stream" and headers.get("user-agent", "").startswith("Mozilla/")


def _with_errors_as_events(send: Send) -> Send:
    """Return a `send` that turns a passing error into a stream of one event."""
    error: Message | None = None
    body = b""

    async def as_event(message: Message) -> None:
        nonlocal error, body
        if message["type"] == "http.response.start" and message["status"] in _PASSING:
            error = message
        elif error is None:
            await send(message)
        else:
            body += message.get("body", b"")
            if not message.get("more_body"):
                await _send_event(send, Headers(raw=error["headers"]), body)

    return as_event


async def _send_event(send: Send, headers: Headers, problem: bytes) -> None:
    wait_ms = min(1000 * int(headers.get("retry-after", "1")), _LONGEST_MS)
    event = format_sse_event(
        event="problem",
        data_str=json.dumps(json.loads(problem)),
        retry=randint(wait_ms, wait_ms + 2000),
    )
    kept = [(name, value) for name, value in headers.raw if not name.startswith(b"content-")]
    kept += [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"content-length", str(len(event)).encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": kept})
    await send({"type": "http.response.body", "body": event})
