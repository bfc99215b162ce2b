"""The connection below the app: every request must arrive whole and in time.

What is not HTTP gets a problem as its answer, as every other error does. Without this, uvicorn

- waits for ever for a request that is sent byte by byte,
- waits for ever for a client that does not read its answer,
- accepts request lines and headers of any size,
- answers what it cannot parse in text/plain.
"""

from __future__ import annotations

import asyncio
from collections import deque
from http import HTTPStatus
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.problems.exception_handlers import render
from app.problems.problems import HeadTooLarge, NotHttp, Problem, SlowRequest

_MAX_HEAD_BYTES = 64 * 1024


class Connection(HttpToolsProtocol):
    """One client's connection. A subclass may set other time limits."""

    # Seconds from a request's first byte to its last. The largest body needs 3.3 KB a second.
    arrives_within_s: ClassVar[float] = 20.0
    # Seconds that 64 KB of an answer may wait for a client that reads nothing.
    # The rest of the answer would wait for ever.
    read_within_s: ClassVar[float] = 60.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock of the first request."""
        super().connection_made(transport)
        # Runs while a request is awaited, until it has arrived whole.
        self._arrival: asyncio.TimerHandle | None = None
        # Runs while the client does not read.
        self._unread: asyncio.TimerHandle | None = None
        self._in_head = False
        self._head_bytes = 0
        # Whether a request has ended in the bytes that arrived last.
        self._request_ended = False
        # Requests that have arrived whole and are not answered yet.
        self._unanswered: deque[RequestResponseCycle] = deque()
        # Why the request after those is refused, if it is.
        self._refusal: Problem | None = None
        self._start_arrival()

    def pause_writing(self) -> None:
        """Start the clock of a client that does not read."""
        super().pause_writing()
        self._unread = self.loop.call_later(self.read_within_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop the clock of a client that did not read."""
        super().resume_writing()
        self._stop_unread()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks, and tell all requests that their client has gone."""
        self._stop_arrival()
        self._stop_unread()
        # Uvicorn tells the latest request only.
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse the bytes, unless a request is refused already, and measure the head.

        The parser does not say where in `data` a head begins. A head that begins after another
        request is therefore measured from the next bytes on. It can be larger than the limit by
        what one read takes (256 KB), and requests sent all at once are not taken for one head.
        """
        if self._refusal:
            return
        self._start_arrival()
        self._request_ended = False
        super().data_received(data)
        if self._in_head and not self._request_ended:
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD_BYTES:
                self._refuse(HeadTooLarge(_MAX_HEAD_BYTES))

    def on_message_begin(self) -> None:
        """Begin a request: its clock and the size of its head."""
        self._in_head = True
        self._head_bytes = 0
        self._start_arrival()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Stop measuring the head."""
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Stop the clock of a request that has arrived whole."""
        self._request_ended = True
        self._stop_arrival()
        if not self.cycle.response_complete:
            self._unanswered.append(self.cycle)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Go on with what came after the request that has been answered."""
        super().on_response_complete()
        while self._unanswered and self._unanswered[0].response_complete:
            self._unanswered.popleft()
        if self._refusal:
            self._refuse(self._refusal)
        elif self._arrival is not None:
            # A request began to arrive meanwhile: its time begins now.
            if self._in_head:
                # Uvicorn takes the connection for idle, and would close it after 5 s.
                self._unset_keepalive_if_required()
            self._stop_arrival()
            self._start_arrival()

    def send_400_response(self, msg: str) -> None:
        """Refuse what uvicorn cannot parse."""
        self._refuse(NotHttp())

    def _start_arrival(self) -> None:
        if self._arrival is None:
            self._arrival = self.loop.call_later(self.arrives_within_s, self._too_late)

    def _stop_arrival(self) -> None:
        if self._arrival is not None:
            self._arrival.cancel()
            self._arrival = None

    def _stop_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _too_late(self) -> None:
        """Refuse a request that did not arrive in time, or close an idle connection."""
        self._arrival = None
        if self._unanswered:
            # Requests before it are being answered: its time begins after them.
            self._start_arrival()
            return
        answered = self.cycle is None or self.cycle.response_complete
        if answered and not self._in_head:
            # Nothing has begun to arrive, or the rest of what was answered is still arriving.
            self.transport.close()
        else:
            self._refuse(SlowRequest(self.arrives_within_s))

    def _refuse(self, problem: Problem) -> None:
        """Answer with a problem and close the connection, after the requests before this one.

        No answer is sent where the refused request's own answer has begun.
        """
        if self.transport.is_closing():
            return
        if self._unanswered:
            self._refusal = problem
            self.pipeline = deque(waiting for waiting in self.pipeline if not waiting[0].more_body)
            return
        cycle = self.cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            self.transport.write(_closing_response(problem))
        self.transport.close()


def _closing_response(problem: Problem) -> bytes:
    """Return the response to a problem, after which the connection is closed, as HTTP."""
    response = render(problem)
    status = HTTPStatus(response.status_code)
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}".encode(),
        *(b": ".join(header) for header in response.raw_headers),
        b"connection: close",
        b"",
        bytes(response.body),
    ]
    return b"\r\n".join(lines)
