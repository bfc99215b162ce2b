"""Sends cases over connections of their own, and collects what is wrong with the answers."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

from bench.fuzz.answers import Malformed, faults_of, read_answers
from bench.fuzz.mutations import SENT_WHOLE, Case, Manner

# It closes the connection, so that no case waits until an idle connection is closed.
_LAST = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
# Answers that go on until something happens to a job.
_OPEN_END = re.compile(rb"wait=|/events|%", re.IGNORECASE)
_MOST_BYTES = 1 << 24
_QUIET_S = 1.0
_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong with the answers to a case."""

    case: Case
    fault: str

    def __str__(self) -> str:
        """Return it in two lines, with the bytes that show it."""
        how = f"case {self.case.number} ({', '.join(self.case.mutations)}; {self.case.manner})"
        return f"{how}: {self.fault}\n    {self.case.data[:1500]!r}"


@dataclass
class FuzzTally:
    """What has come of the cases so far.

    Attributes:
        statuses: How often each status was answered.
        silent: Cases that were sent whole and got no answer.
    """

    cases: int = 0
    silent: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)


async def send_all(
    port: int,
    make: Callable[[int], Case],
    numbers: Iterator[int],
    tally: FuzzTally,
    *,
    patience_s: float,
    at_once: int = 64,
) -> None:
    """Send cases, several at a time, until there are no more numbers.

    Args:
        port: Port of 127.0.0.1.
        make: Makes the case of a number.
        numbers: Of the cases.
        tally: What has come of them, which this adds to.
        patience_s: How long an answer or a close may take. It has to be more than the server gives
            a request to arrive.
        at_once: How many connections are open at a time.
    """

    async def work() -> None:
        for number in numbers:
            case = make(number)
            faults = await _faults(port, case, tally, patience_s)
            tally.cases += 1
            tally.findings += [Finding(case, fault) for fault in faults]

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(work())


async def _faults(port: int, case: Case, tally: FuzzTally, patience_s: float) -> list[str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received, closed = b"", False
    try:
        await _send(writer, case)
        if case.manner in (Manner.LEAVES, Manner.RESET):
            return []
        received, closed = await _receive(reader, case, patience_s)
    except OSError:
        # The server has closed before it was sent all of it: ENOTCONN is no ConnectionError.
        received += bytes(getattr(reader, "_buffer", b""))
        closed = True
    finally:
        writer.transport.abort()
    return _judge(case, received, closed, tally)


def _judge(case: Case, received: bytes, closed: bool, tally: FuzzTally) -> list[str]:
    try:
        answers = read_answers(received, closed, may_be_head=b"HEAD" in case.data)
    except Malformed as error:
        return [str(error)]
    tally.statuses.update(answer.status for answer in answers)
    tally.silent += not answers and case.manner in SENT_WHOLE
    faults = [fault for answer in answers for fault in faults_of(answer)]
    # After whole answers a connection may stay open for the next request.
    stays_open = bool(answers) and answers[-1].whole
    if not closed and not stays_open and not _OPEN_END.search(case.data):
        faults.append(f"neither answered nor closed; so far {received[:300]!r}")
    return faults


async def _send(writer: asyncio.StreamWriter, case: Case) -> None:
    random = Random(case.number)
    data = case.data + _LAST if case.manner in SENT_WHOLE else case.data
    match case.manner:
        case Manner.PIECES:
            cuts = sorted(random.choices(range(len(data)), k=min(8, len(data))))
            for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True):
                writer.write(data[a:b])
                await asyncio.sleep(random.random() * 0.02)
        case Manner.SLOW:
            for byte in data[: random.randrange(1, 60)]:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.01)
        case Manner.CUT:
            writer.write(data[: random.randrange(len(data))])
        case _:
            writer.write(data)
    await writer.drain()
    match case.manner:
        case Manner.HALF_CLOSED:
            writer.write_eof()
        case Manner.UNREAD:
            await asyncio.sleep(1.0)
        case Manner.LEAVES:
            await asyncio.sleep(random.random() * 0.05)
        case Manner.RESET:
            opened: Any = writer.get_extra_info("socket")
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


async def _receive(
    reader: asyncio.StreamReader, case: Case, patience_s: float
) -> tuple[bytes, bool]:
    """Return what came, and whether the server has closed."""
    received = bytearray()
    wait_s = _QUIET_S if _OPEN_END.search(case.data) else patience_s
    while len(received) < _MOST_BYTES:
        try:
            async with asyncio.timeout(wait_s):
                part = await reader.read(1 << 16)
        except TimeoutError:
            return bytes(received), False
        except ConnectionError:
            return bytes(received), True
        if not part:
            return bytes(received), True
        received += part
    return bytes(received), False
