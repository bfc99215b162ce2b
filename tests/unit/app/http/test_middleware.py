from __future__ import annotations

import asyncio

import pytest
from starlette.types import Message, Receive, Scope, Send

from app.http.middleware import BodyLimit
from app.problems.problems import BodyTooLarge


class Client:
    """Sends chunks without end, and counts those that are read."""

    def __init__(self, size: int) -> None:
        self.size, self.read = size, 0

    async def receive(self) -> Message:
        self.read += 1
        return {"type": "http.request", "body": b" " * self.size, "more_body": True}


async def _greedy(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive())["more_body"]:
        pass


def _read_all(client: Client, *headers: tuple[bytes, bytes]) -> list[Message]:
    """Return the answer to a request whose body an app reads to its end."""
    scope: Scope = {"type": "http", "method": "POST", "headers": list(headers)}
    answers: list[Message] = []

    async def send(message: Message) -> None:
        answers.append(message)

    asyncio.run(BodyLimit(_greedy, max_bytes=100)(scope, client.receive, send))
    return answers


def test_a_body_is_read_no_further_than_the_chunk_that_passes_the_limit() -> None:
    client = Client(30)
    with pytest.raises(BodyTooLarge):
        _read_all(client)
    assert client.read == 4


def test_a_declared_length_over_the_limit_is_refused_unread() -> None:
    client = Client(30)
    start, _ = _read_all(client, (b"content-length", b"101"))
    assert (start["status"], client.read) == (413, 0)


def test_a_false_declaration_does_not_help() -> None:
    client = Client(30)
    with pytest.raises(BodyTooLarge):
        _read_all(client, (b"content-length", b"1"))
    assert client.read == 4
