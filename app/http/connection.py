"""The connection below the app: a request must arrive whole and in time, and what is no HTTP is told so as everything else is.

uvicorn waits for ever for a request that is sent byte by byte, and for a client that does not read its answer, keeps a head of
any size, and answers what it cannot parse in text/plain.
"""

from __future__ import annotations

import asyncio
from collections import deque
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.problems.exception_handlers import render
from app.problems.problems import HeadTooLarge, NotHttp, Problem, SlowRequest

ARRIVES_WITHIN_S = 20.0  # from its first byte to its last; the largest body needs 3.3 KB a second
READ_WITHIN_S = 60.0  # what was written and waits, 64 KB of it: the rest would wait for ever for a client that reads nothing
_MAX_HEAD_BYTES = 64 * 1024


class Connection(HttpToolsProtocol):
    """For app/http/server.py."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._timer: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._in_head, self._head_bytes, self._one_ended = False, 0, False
        self._owed: deque[RequestResponseCycle] = deque()  # arrived whole, and not answered yet
        self._refusal: Problem | None = None  # of what came behind those
        self._expect_the_rest()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(READ_WITHIN_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._is_read()

    def connection_lost(self, exc: Exception | None) -> None:
        self._all_is_here()
        self._is_read()
        for cycle in self._owed:  # uvicorn tells the latest request only
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refusal:
            return
        self._expect_the_rest()
        self._one_ended = False
        super().data_received(data)
        # where in `data` the head began is not told: behind another request it is counted from the next read on, so that a head
        # can have what one read takes (256 KB) beyond the limit, and requests sent all at once are not taken for one head
        if self._in_head and not self._one_ended:
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD_BYTES:
                self._refuse(HeadTooLarge(_MAX_HEAD_BYTES))

    def on_message_begin(self) -> None:
        self._in_head, self._head_bytes = True, 0
        self._expect_the_rest()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._one_ended = True
        self._all_is_here()
        if not self.cycle.response_complete:
            self._owed.append(self.cycle)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        while self._owed and self._owed[0].response_complete:
            self._owed.popleft()
        if self._refusal:
            self._refuse(self._refusal)
        elif self._timer is not None:  # a request began to arrive meanwhile: its time begins now
            if self._in_head:  # uvicorn takes the connection for idle, and would close it after 5 s
                self._unset_keepalive_if_required()
            self._all_is_here()
            self._expect_the_rest()

    def send_400_response(self, msg: str) -> None:
        """uvicorn's, for what it cannot parse."""
        self._refuse(NotHttp())

    def _expect_the_rest(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(ARRIVES_WITHIN_S, self._too_late)

    def _all_is_here(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _is_read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _too_late(self) -> None:
        self._timer, cycle = None, self.cycle
        if self._owed:  # those before it are being answered
            self._expect_the_rest()
        elif self._in_head and (cycle is None or cycle.response_complete):
            self._refuse(SlowRequest(ARRIVES_WITHIN_S))
        elif (
            cycle is None or cycle.response_complete
        ):  # nothing has begun to arrive, or what was answered already goes on
            self.transport.close()
        else:
            self._refuse(SlowRequest(ARRIVES_WITHIN_S))

    def _refuse(self, problem: Problem) -> None:
        """Behind the answers to those that came before. Where its own answer has begun, there is no room for another."""
        if self.transport.is_closing():
            return
        if self._owed:
            self._refusal = problem
            self.pipeline = deque(waiting for waiting in self.pipeline if not waiting[0].more_body)
            return
        cycle = self.cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            answer = render(problem)
            status = HTTPStatus(answer.status_code)
            head = [
                f"HTTP/1.1 {status.value} {status.phrase}".encode(),
                *(b": ".join(pair) for pair in answer.raw_headers),
            ]
            self.transport.write(
                b"\r\n".join([*head, b"connection: close", b"", bytes(answer.body)])
            )
        self.transport.close()
