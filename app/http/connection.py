"""The connection below the app: what one client may make the process hold or do.

Every request has to arrive whole, in time and within bounds. What is not HTTP gets a problem as
its answer, as every other error does. Without this, uvicorn

- waits for ever for a request that is sent byte by byte,
- waits for ever for a client that does not read its answer,
- keeps request lines, headers and trailers of any size and number,
- takes trailers for headers,
- parses requests that wait behind an unanswered one, however many they are,
- reads the rest of a body that was refused,
- answers what it cannot parse in text/plain.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.http.capacity import Capacity
from app.http.middleware import add_headers
from app.http.request_log import note_refused
from app.http.transport import LingeringTransport
from app.operation.origin import new_request_id
from app.problems.exception_handlers import render
from app.problems.problems import (
    BodyTooLarge,
    HeadTooLarge,
    NotHttp,
    Problem,
    RepeatedHeader,
    SlowRequest,
    TooManyConnections,
    WrongTransferEncoding,
)

_MAX_HEAD_BYTES = 64 * 1024
_MAX_HEADERS = 100
# Proxies and servers do not agree on which of two counts.
_ONCE = {
    name.lower().encode(): name
    for name in ("Host", "Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID")
}
_WHOLE_URL = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://(?:[^/?#@]*@)?([^/?#]*)")
_MAX_TRAILER_BYTES = 4 * 1024
# The parser cannot stop within what it is given. So it is given little, and stops behind that.
_PARSED_AT_ONCE_BYTES = 512
# Of requests that came too early. One more read may come on top of it.
_MAX_BEHIND_BYTES = 64 * 1024
# A body in chunks of one byte is six times as long on the wire.
_CHUNKING = 8


@dataclass(frozen=True, slots=True)
class Limits:
    """What all connections of a process share.

    Attributes:
        capacity: How many there may be.
        max_body_bytes: Largest body that the app reads.
    """

    capacity: Capacity = field(default_factory=lambda: Capacity(4096))
    max_body_bytes: int = 65_536


class Connection(HttpToolsProtocol):
    """One client's connection. A subclass may set other time limits.

    tests/unit/app/http/test_uvicorn.py holds what this leans on of uvicorn.
    """

    # Seconds from a request's first byte to its last. The largest body needs 3.3 KB a second.
    arrives_within_s: ClassVar[float] = 20.0
    # Seconds that 64 KB of an answer may wait for a client that reads nothing.
    # The rest of the answer would wait for ever.
    read_within_s: ClassVar[float] = 60.0

    def __init__(self, *args: Any, limits: Limits | None = None, **options: Any) -> None:
        """Take uvicorn's own arguments, and the limits that connections share."""
        super().__init__(*args, **options)
        self._limits = limits or Limits()
        self._max_request_bytes = _MAX_HEAD_BYTES + _CHUNKING * self._limits.max_body_bytes

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock of the first request, or refuse the connection."""
        self._lingering = LingeringTransport(
            transport,
            still_sends=lambda: self._arriving,
            may_read=lambda: len(self._behind) < _MAX_BEHIND_BYTES,
            unread_for_s=self.read_within_s,
        )
        super().connection_made(self._lingering)
        # Runs while a request is awaited, until it has arrived whole.
        self._arrival: asyncio.TimerHandle | None = None
        # Runs while the client does not read.
        self._unread: asyncio.TimerHandle | None = None
        # Bytes that arrived behind a request that is not answered yet.
        self._behind = b""
        # Whether a request has begun to arrive and is not whole; whether its head has not ended.
        self._arriving = self._in_head = False
        # Whether the last chunk of a body has arrived, so that only trailers can follow.
        self._in_trailers = False
        # Bytes of the head, of the trailers, of the whole request that is arriving.
        self._head_bytes = self._trailer_bytes = self._request_bytes = 0
        # Whether the client may send another request after this one.
        self._persistent = True
        # Requests that have arrived whole and are not answered yet.
        self._unanswered: deque[RequestResponseCycle] = deque()
        # What else than the parser's own complaint is wrong with a request that it gave up.
        self._fault: Problem | None = None
        # Why the request after those is refused, if it is.
        self._refusal: Problem | None = None
        if self._limits.capacity.admit(self):
            self._start_arrival()
        else:
            self._refuse(TooManyConnections(self._limits.capacity.most))

    def give_way(self) -> None:
        """Close at once, as the place is needed."""
        self.transport.abort()

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
        self._lingering.lost()
        self._limits.capacity.leave(self)
        # Uvicorn tells the latest request only.
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Close after the answers that are due."""
        self._persistent = False
        super().shutdown()

    def data_received(self, data: bytes) -> None:
        """Parse the bytes, or keep those that come too early.

        What follows a refused request is dropped.
        """
        if self.transport.is_closing():
            self._lingering.discard(len(data))
        elif not self._refusal:
            self._start_arrival()
            self._parse(self._behind + data)

    def _parse(self, data: bytes) -> None:
        """Parse until a request is whole that has to be answered before the next one.

        Reading pauses then. A handler that watches for the client's leaving lets it go on, unless
        there is much behind the request.
        """
        self._behind = b""
        for begin in range(0, len(data), _PARSED_AT_ONCE_BYTES):
            if self.transport.is_closing() or self._refusal:
                return
            if self._unanswered:
                self._behind = data[begin:]
                self.flow.pause_reading()
                return
            part = data[begin : begin + _PARSED_AT_ONCE_BYTES]
            super().data_received(part)
            self._measure(len(part))

    def _measure(self, size: int) -> None:
        """Count bytes that were parsed, and refuse a request that has too many."""
        self._request_bytes += size
        self._head_bytes += size if self._in_head else 0
        self._trailer_bytes += size if self._in_trailers else 0
        if not self._arriving:
            # Empty lines are no request.
            if self._request_bytes > _MAX_HEAD_BYTES:
                self.transport.close()
        elif self._head_bytes > _MAX_HEAD_BYTES:
            self._refuse(HeadTooLarge(_MAX_HEAD_BYTES, _MAX_HEADERS))
        elif self._trailer_bytes > _MAX_TRAILER_BYTES:
            self._refuse(HeadTooLarge(_MAX_TRAILER_BYTES, _MAX_HEADERS))
        elif self._request_bytes > self._max_request_bytes:
            self._refuse(BodyTooLarge(self._limits.max_body_bytes))

    def on_message_begin(self) -> None:
        """Begin a request: its clock and its measures."""
        self._arriving = self._in_head = True
        self._in_trailers = False
        self._head_bytes = self._trailer_bytes = self._request_bytes = 0
        self._start_arrival()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header. Trailers are dropped.

        Raises:
            ValueError: It is one too many, or in a coding that nobody reads. The parser gives up.
        """
        if not self._in_head:
            return
        if len(self.headers) == _MAX_HEADERS:
            self._fault = HeadTooLarge(_MAX_HEAD_BYTES, _MAX_HEADERS)
            raise ValueError("too many headers")
        if fault := self._fault_of(name.lower(), value):
            self._fault = fault
            raise ValueError(fault.name)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Hand the request to the app.

        An answer that begins before the request is whole ends the connection. Otherwise the rest
        of a refused body would have to be read.
        """
        self._in_head = False
        self._limits.capacity.is_busy(self)
        self._take_host_of_url()
        super().on_headers_complete()
        # What would follow an upgrade is another protocol, which nobody here speaks.
        self._persistent &= self.cycle.keep_alive and not self.parser.should_upgrade()
        self.cycle.keep_alive = False

    def _fault_of(self, name: bytes, value: bytes) -> Problem | None:
        if name in _ONCE and any(other == name for other, _ in self.headers):
            return RepeatedHeader(_ONCE[name])
        if name == b"transfer-encoding" and value.strip().lower() != b"chunked":
            return WrongTransferEncoding(value.decode("latin-1"))
        return None

    def _take_host_of_url(self) -> None:
        """Let the host of a whole URL count, and not the header (RFC 9112, section 3.2.2)."""
        if self.url[:1] != b"/" and (whole := _WHOLE_URL.match(self.url)):
            self.headers[:] = [header for header in self.headers if header[0] != b"host"]
            self.headers.append((b"host", whole[1]))

    def on_chunk_header(self) -> None:
        """Begin a chunk, which is the last one if no body follows."""
        self._in_trailers = True

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._in_trailers = False
        self._trailer_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Stop the clock of a request that has arrived whole."""
        self._arriving = False
        self._request_bytes = 0
        self._stop_arrival()
        if not self.cycle.response_started:
            self.cycle.keep_alive = self._persistent
        if not self.cycle.response_complete:
            self._unanswered.append(self.cycle)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Go on with what came after the request that has been answered."""
        behind, self._behind = self._behind, b""
        super().on_response_complete()
        while self._unanswered and self._unanswered[0].response_complete:
            self._unanswered.popleft()
        if self._refusal:
            self._refuse(self._refusal)
        elif not self.transport.is_closing():
            self._parse(behind)
            if not self._unanswered:
                self._await_request()

    def _await_request(self) -> None:
        """Wait for the next request, whose time begins now if a part of it is here."""
        if self.cycle.response_complete:
            self._limits.capacity.waits(self)
        if self._arrival is not None:
            self._stop_arrival()
            self._start_arrival()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection. To uvicorn, one that has received half a head is idle."""
        if not self._arriving:
            super().timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:
        """Refuse what uvicorn cannot parse."""
        self._refuse(self._fault or NotHttp())

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
        elif self._arriving:
            self._refuse(SlowRequest(self.arrives_within_s))
        else:
            self.transport.close()

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
        if cycle is not None:
            # Its handler may run and go on to answer: to it, the client has left.
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.close()


def _closing_response(problem: Problem) -> bytes:
    """Return the response to a problem, after which the connection is closed, as HTTP."""
    response = render(problem)
    request_id = new_request_id()
    note_refused(problem.status, request_id, problem.name)
    add_headers(response.headers)
    status = HTTPStatus(response.status_code)
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}".encode(),
        *(b": ".join(header) for header in response.raw_headers),
        f"x-request-id: {request_id}".encode(),
        b"connection: close",
        b"",
        bytes(response.body),
    ]
    return b"\r\n".join(lines)
