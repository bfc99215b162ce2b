"""What one connection can make the process hold, whatever it sends."""

from __future__ import annotations

import asyncio
import gc
import socket
import tracemalloc
from collections.abc import Iterator

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from app.http.capacity import Capacity
from app.http.connection import Connection, Limits
from bench.hostile.endless import ENDLESS
from tests.support.raw_http import get, post

MOST_BYTES = 2 << 20
CHUNKED = post(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
PART = 1 << 18
# More than what is bounded, and little enough for a test.
SENT_BYTES = 16 << 20


async def unanswering(scope: Scope, receive: Receive, send: Send) -> None:
    """Watches for the client's leaving, as a stream of events does."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers without a look at the body, as the gate does."""
    await send({"type": "http.response.start", "status": 401, "headers": []})
    await send({"type": "http.response.body", "body": b"no"})


async def watching(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers while it watches for the client's leaving, as a response from a file does."""
    leaving = asyncio.create_task(receive())
    for _ in range(5):
        await asyncio.sleep(0)
    await refusing(scope, receive, send)
    await leaving


class Harness:
    """Serves connections over socket pairs, in the loop of the test."""

    def __init__(self, app: object, most: int = 100) -> None:
        self.config = uvicorn.Config(app, interface="asgi3", ws="none", log_config=None)
        self.limits = Limits(Capacity(most))
        self.open: list[socket.socket] = []

    async def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self.open.append(ours)
        await asyncio.get_running_loop().connect_accepted_socket(self._protocol, theirs)
        return ours

    def _protocol(self) -> Connection:
        return Connection(self.config, ServerState(), app_state={}, limits=self.limits)

    async def close(self) -> None:
        for ours in self.open:
            ours.close()
        await let_others_run()


async def let_others_run() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def send_until_refused(client: socket.socket, parts: Iterator[bytes]) -> None:
    """Send until the other end no longer reads, or closes, or all is sent."""
    for part in parts:
        rest = memoryview(part)
        while rest:
            try:
                rest = rest[client.send(rest) :]
            except BlockingIOError:
                before = len(rest)
                await let_others_run()
                try:
                    rest = rest[client.send(rest) :]
                except (BlockingIOError, ConnectionError):
                    return
                assert len(rest) < before
            except ConnectionError:
                return
            await asyncio.sleep(0)


@pytest.mark.parametrize("app", [unanswering, refusing, watching])
@pytest.mark.parametrize("kind", ENDLESS)
def test_one_connection_cannot_make_the_process_hold_much(kind: str, app: object) -> None:
    first, unit = ENDLESS[kind]
    whole = unit * (PART // len(unit))

    async def conversation() -> int:
        harness = Harness(app)
        client = await harness.connect()
        gc.collect()
        tracemalloc.start()
        try:
            await send_until_refused(client, iter([first, *[whole] * (SENT_BYTES // PART)]))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            await harness.close()

    assert asyncio.run(conversation()) < MOST_BYTES


@pytest.mark.parametrize("size", [1, 64], ids=["by the byte", "by 64 bytes"])
def test_a_trailer_is_taken_for_no_header(size: int) -> None:
    seen: list[list[tuple[bytes, bytes]]] = []

    async def reading(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        seen.append(scope["headers"])
        await refusing(scope, receive, send)

    async def conversation() -> bytes:
        harness = Harness(reading)
        client = await harness.connect()
        request = CHUNKED + b"2\r\n{}\r\n0\r\nIdempotency-Key: x\r\n\r\n"
        for begin in range(0, len(request), size):
            await asyncio.get_running_loop().sock_sendall(client, request[begin : begin + size])
            await asyncio.sleep(0)
        answer = await asyncio.get_running_loop().sock_recv(client, 4096)
        await harness.close()
        return answer

    assert asyncio.run(conversation()).startswith(b"HTTP/1.1 401")
    assert [name for name, _ in seen[0]] == [b"host", b"content-type", b"transfer-encoding"]


def test_the_connection_ends_with_the_answer_to_a_body_that_is_still_sent() -> None:
    async def conversation() -> bytes:
        loop = asyncio.get_running_loop()
        harness = Harness(refusing)
        client = await harness.connect()
        await loop.sock_sendall(client, post(b"", length=1 << 30) + b"x" * 1000)
        answer = b""
        while received := await loop.sock_recv(client, 4096):
            answer += received
        await harness.close()
        return answer

    answer = asyncio.run(conversation())
    assert answer.startswith(b"HTTP/1.1 401")
    assert answer.count(b"HTTP/1.1") == 1
    assert b"connection: close\r\n" in answer


def test_an_answer_to_a_whole_request_keeps_the_connection() -> None:
    async def conversation() -> list[bytes]:
        loop = asyncio.get_running_loop()
        harness = Harness(refusing)
        client = await harness.connect()
        answers = []
        for _ in range(2):
            await loop.sock_sendall(client, post(b"{}"))
            answers.append(await loop.sock_recv(client, 4096))
        await harness.close()
        return answers

    for answer in asyncio.run(conversation()):
        assert answer.startswith(b"HTTP/1.1 401")
        assert b"connection: close" not in answer


def test_the_connection_that_waits_longest_gives_way_to_a_new_one() -> None:
    async def conversation() -> None:
        loop = asyncio.get_running_loop()
        harness = Harness(refusing, most=3)
        first, second, third = [await harness.connect() for _ in range(3)]
        # The first one is served, and waits from then on.
        await loop.sock_sendall(first, get(b"/"))
        await loop.sock_recv(first, 4096)
        await loop.sock_sendall(second, b"GET /half")
        newest = await harness.connect()
        await loop.sock_sendall(newest, get(b"/"))
        assert await loop.sock_recv(newest, 4096)
        with pytest.raises(ConnectionResetError):
            await loop.sock_recv(second, 4096)
        for kept in (first, third):
            await loop.sock_sendall(kept, get(b"/"))
            assert await loop.sock_recv(kept, 4096)
        await harness.close()

    asyncio.run(conversation())


def test_a_new_connection_is_refused_while_all_others_are_busy() -> None:
    async def conversation() -> bytes:
        loop = asyncio.get_running_loop()
        harness = Harness(unanswering, most=2)
        for _ in range(2):
            await loop.sock_sendall(await harness.connect(), get(b"/"))
        await let_others_run()
        answer = await loop.sock_recv(await harness.connect(), 4096)
        await harness.close()
        return answer

    answer = asyncio.run(conversation())
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"all 2 connections" in answer
