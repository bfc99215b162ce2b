"""Clients by the thousand in one thread: they poll a status on the second, or read events. They parse next to nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

EVERY_S = 1.0
CRLF = b"\r\n"
C = TypeVar("C", bound=asyncio.Protocol)


@dataclass(slots=True)
class Tally:
    """Latencies count from the moment that a request was due, whether or not the client or its connection was free then."""

    latencies_s: list[float] = field(default_factory=list)
    unanswered_s: list[float] = field(
        default_factory=list
    )  # for how long what was not answered by the end had been due
    late_s: list[float] = field(
        default_factory=list
    )  # by how much this process itself sent a request too late
    errors: list[str] = field(default_factory=list)
    events: int = 0
    ended: int = 0  # streams that told of a final state


class _Client(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, path: str, tally: Tally) -> None:
        self.request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        self.tally, self.loop, self.leaving = tally, asyncio.get_running_loop(), False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # of a TCP connection it is one

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.leaving:
            self.tally.errors.append(f"connection lost: {exc}")
            self.leaving = True

    def leave(self) -> None:
        self.leaving = True
        self.transport.close()


class Poller(_Client):
    """Asks every second. One that is answered too late asks at once, and that request has been due for as long."""

    def __init__(self, path: str, tally: Tally) -> None:
        super().__init__(path, tally)
        self.head, self.left, self.due = b"", -1, 0.0

    def ask_at(self, due: float) -> None:
        self.due = due
        self.loop.call_at(due, self._ask)

    def _ask(self) -> None:
        if not self.leaving:
            self.tally.late_s.append(self.loop.time() - self.due)
            self.head, self.left = b"", -1
            self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        if self.left < 0:
            self.head += data
            head, found, data = self.head.partition(b"\r\n\r\n")
            if not found:
                return
            self.left = self._length(head)
        self.left -= len(data)
        if self.left == 0:
            self.tally.latencies_s.append(self.loop.time() - self.due)
            self.ask_at(self.due + EVERY_S)

    def leave(self) -> None:
        if (waited_s := self.loop.time() - self.due) > 0:  # else the next request is not due yet
            self.tally.unanswered_s.append(waited_s)
        super().leave()

    def _length(self, head: bytes) -> int:
        if not head.startswith(b"HTTP/1.1 200"):
            self.tally.errors.append(head.partition(b"\r\n")[0].decode())
        return int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])


class Reader(_Client):
    """Reads a stream to its end."""

    def __init__(self, path: str, tally: Tally) -> None:
        super().__init__(path, tally)
        self.last = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        if not self.last and not data.startswith(b"HTTP/1.1 200"):
            self.tally.errors.append(f"no stream: {data.partition(CRLF)[0].decode()}")
            self.leave()
            return
        self.tally.events += data.count(b"event: ")
        self.last = (self.last + data)[-512:]
        if self.last.endswith(b"0\r\n\r\n"):
            finished = b'"state":"finished"' in self.last
            self.tally.ended += finished
            if not finished:
                self.tally.errors.append(f"a stream ended without a final state: {self.last!r}")
            self.leave()


async def crowd(
    port: int,
    polled: Sequence[str],
    streamed: Sequence[str],
    seconds: float,
    end: Callable[[], object] | None,
) -> Tally:
    """Poll for a time while events are read; then leave, or call `end`, which is to end the streams, and wait for their ends."""
    tally, loop = Tally(), asyncio.get_running_loop()
    readers = [await _connect(port, Reader(path, tally)) for path in streamed]
    pollers = [await _connect(port, Poller(path, tally)) for path in polled]
    start = loop.time() + 0.5
    for number, poller in enumerate(pollers):
        poller.ask_at(start + EVERY_S * number / len(pollers))
    await asyncio.sleep(start + seconds - loop.time())
    for poller in pollers:
        poller.leave()
    if end:
        await asyncio.to_thread(end)
        await _until(lambda: all(reader.leaving for reader in readers))
    for reader in readers:
        reader.leave()
    return tally


async def _connect(port: int, client: C) -> C:
    await asyncio.get_running_loop().create_connection(lambda: client, "127.0.0.1", port)
    return client


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.05)
