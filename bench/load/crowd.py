"""Clients by the thousand in one thread, which poll a status every second or read events.

They parse next to nothing.
"""

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
    """The results of the clients.

    Latencies count from the moment that a request was due, whether or not the client or its
    connection was free then.

    Attributes:
        latencies_s: Seconds of each answered request.
        unanswered_s: Seconds since each request was due that had no answer by the end.
        late_s: Seconds by which this process itself sent each request too late.
        errors: Descriptions of what went wrong.
        events: Events that came.
        ended: Streams that sent a final state.
    """

    latencies_s: list[float] = field(default_factory=list)
    unanswered_s: list[float] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    events: int = 0
    ended: int = 0


class _Client(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, path: str, tally: Tally) -> None:
        self.request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        self.tally = tally
        self.loop = asyncio.get_running_loop()
        self.leaving = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A TCP connection's transport is an asyncio.Transport.
        self.transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.leaving:
            self.tally.errors.append(f"connection lost: {exc}")
            self.leaving = True

    def leave(self) -> None:
        self.leaving = True
        self.transport.close()


class Poller(_Client):
    """A client that asks every second.

    After a late answer it asks at once, and that request counts from when it was due.
    """

    def __init__(self, path: str, tally: Tally) -> None:
        super().__init__(path, tally)
        # Of the answer: what has come of its head, and the bytes of the body that are to come, or
        # -1 while the head is not complete.
        self.head = b""
        self.left = -1
        self.due = 0.0

    def ask_at(self, due: float) -> None:
        """Send the next request at `due`, in the event loop's time."""
        self.due = due
        self.loop.call_at(due, self._ask)

    def _ask(self) -> None:
        if not self.leaving:
            self.tally.late_s.append(self.loop.time() - self.due)
            self.head = b""
            self.left = -1
            self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        """Take part of an answer, and ask again once it is complete."""
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
        """Disconnect, and count a request that was due and has no answer."""
        if (waited_s := self.loop.time() - self.due) > 0:
            self.tally.unanswered_s.append(waited_s)
        super().leave()

    def _length(self, head: bytes) -> int:
        if not head.startswith(b"HTTP/1.1 200"):
            self.tally.errors.append(head.partition(b"\r\n")[0].decode())
        return int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])


class Reader(_Client):
    """A client that reads a stream to its end."""

    def __init__(self, path: str, tally: Tally) -> None:
        super().__init__(path, tally)
        self.last = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the stream."""
        super().connection_made(transport)
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        """Count events, and leave when the stream has ended."""
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
    """Poll for a time while events are read, then leave.

    Args:
        port: Port of the API on this machine.
        polled: Paths to poll, one for each client.
        streamed: Paths of event streams, one for each client.
        seconds: How long to poll.
        end: Called after that to end the streams, whose ends are then waited for. None: the clients
            just leave.

    Raises:
        TimeoutError: A stream had not ended 30 s after `end`.
    """
    tally = Tally()
    loop = asyncio.get_running_loop()
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
