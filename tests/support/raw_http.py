"""HTTP as bytes on a socket, for what no client library would send."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import parse_headers
from typing import BinaryIO
from urllib.parse import urlsplit

HOST = b"Host: localhost\r\n"


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


class Wire:
    """A connection to a server."""

    def __init__(self, opened: socket.socket) -> None:
        self.send = opened.sendall
        self._answers: BinaryIO = opened.makefile("rb")

    def answer(self) -> Answer | None:
        """The next one, which must say how long it is; None where the server closed the connection instead."""
        try:
            line = self._answers.readline()
        except ConnectionError:
            return None
        if not line:
            return None
        headers = {name.lower(): value for name, value in parse_headers(self._answers).items()}
        return Answer(
            int(line.split()[1]), headers, self._answers.read(int(headers.get("content-length", 0)))
        )


@contextmanager
def connection(url: str, timeout_s: float = 10) -> Iterator[Wire]:
    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port), timeout_s) as opened:
        yield Wire(opened)


def ask(url: str, request: bytes) -> Answer | None:
    with connection(url) as wire:
        with suppress(ConnectionError):  # it may have answered already
            wire.send(request)
        return wire.answer()


def get(target: bytes, *headers: bytes, version: bytes = b"HTTP/1.1") -> bytes:
    return (
        b"GET "
        + target
        + b" "
        + version
        + b"\r\n"
        + HOST
        + b"".join(line + b"\r\n" for line in headers)
        + b"\r\n"
    )


def post(body: bytes, *headers: bytes, length: object = None) -> bytes:
    """A POST of a job."""
    declared = f"Content-Length: {len(body) if length is None else length}\r\n".encode()
    more = b"".join(line + b"\r\n" for line in headers)
    return (
        b"POST /v1/jobs HTTP/1.1\r\n"
        + HOST
        + b"Content-Type: application/json\r\n"
        + declared
        + more
        + b"\r\n"
        + body
    )
