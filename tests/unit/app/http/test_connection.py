from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from app.http.connection import Connection
from tests.support.raw_http import get

LIMIT_S = Connection.arrives_within_s


class ClockedLoop(asyncio.SelectorEventLoop):
    """An event loop whose time a test can put forward."""

    ahead_s = 0.0

    def time(self) -> float:
        return super().time() + self.ahead_s


class Client:
    """A client of an app that answers each request when the test lets it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked = asyncio.Queue[str]()
        self.let_answer = asyncio.Semaphore(0)
        self._reader, self._writer = reader, writer

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked.put_nowait(scope["path"])
        await self.let_answer.acquire()
        length = (b"content-length", b"0")
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body"})

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def status(self) -> int:
        """The status of the next response."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        return int(head.split()[1])

    async def is_closed(self) -> bool:
        return await self._reader.read() == b""

    async def wait(self, seconds: float) -> None:
        """Let time pass, and whatever was due in it happen."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, ClockedLoop)
        loop.ahead_s += seconds
        for _ in range(5):
            await asyncio.sleep(0)


@asynccontextmanager
async def connected() -> AsyncIterator[Client]:
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    client = Client(reader, writer)
    config = uvicorn.Config(client.app, interface="asgi3", ws="none", log_config=None)

    def protocol() -> Connection:
        return Connection(config, ServerState(), app_state={})

    transport, _ = await asyncio.get_running_loop().connect_accepted_socket(protocol, theirs)
    try:
        yield client
    finally:
        transport.close()
        writer.close()
        await writer.wait_closed()


@pytest.fixture
def run() -> Callable[[Callable[[Client], Coroutine[Any, Any, None]]], None]:
    """Runs a conversation with the server, in a loop whose time the client puts forward."""

    def run(conversation: Callable[[Client], Coroutine[Any, Any, None]]) -> None:
        async def whole() -> None:
            async with asyncio.timeout(10 * LIMIT_S), connected() as client:
                await conversation(client)

        with asyncio.Runner(loop_factory=ClockedLoop) as runner:
            runner.run(whole())

    return run


Run = Callable[[Callable[[Client], Coroutine[Any, Any, None]]], None]


def test_the_time_of_a_request_begins_with_the_answer_to_the_one_before(run: Run) -> None:
    async def conversation(client: Client) -> None:
        request = get(b"/second")
        await client.send(get(b"/first") + request[:9])
        assert await client.asked.get() == "/first"
        await client.wait(1.1 * LIMIT_S)
        await client.wait(0.7 * LIMIT_S)
        client.let_answer.release()
        assert await client.status() == 200
        await client.wait(0.9 * LIMIT_S)
        await client.send(request[9:])
        assert await client.asked.get() == "/second"
        client.let_answer.release()
        assert await client.status() == 200

    run(conversation)


def test_a_request_that_is_not_whole_in_time_is_answered_with_408(run: Run) -> None:
    async def conversation(client: Client) -> None:
        await client.send(get(b"/first") + get(b"/second")[:9])
        client.let_answer.release()
        assert await client.status() == 200
        await client.wait(1.1 * LIMIT_S)
        assert await client.status() == 408

    run(conversation)


def test_a_client_that_sends_nothing_is_cut_off_without_an_answer(run: Run) -> None:
    async def conversation(client: Client) -> None:
        await client.wait(0.9 * LIMIT_S)
        await client.wait(0.2 * LIMIT_S)
        assert await client.is_closed()

    run(conversation)
