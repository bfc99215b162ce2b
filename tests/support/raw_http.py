"""HTTP as bytes on a socket: requests that no client library would send."""

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
    """A response that says how long its body is."""

    status: int
    headers: dict[str, str]
    body: bytes


class Wire:
    """A connection to a server."""

    def __init__(self, opened: socket.socket) -> None:
        self.send = opened.sendall
        self._answers: BinaryIO = opened.makefile("rb")

    def answer(self) -> Answer | None:
        """Return the next answer, or None if the server has closed the connection instead."""
        try:
            line = self._answers.readline()
        except ConnectionError:
            return None
        if not line:
            return None
        headers = {name.lower(): value for name, value in parse_headers(self._answers).items()}
        body = self._answers.read(int(headers.get("content-length", 0)))
        return Answer(int(line.split()[1]), headers, body)


@contextmanager
def connection(url: str, timeout_s: float = 60) -> Iterator[Wire]:
    """Open a connection to the server at `url`. `timeout_s` limits each call on it."""
    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port), timeout_s) as opened:
        yield Wire(opened)


def ask(url: str, request: bytes) -> Answer | None:
    """Send the bytes on a connection of their own, and return the answer if there is one."""
    with connection(url) as wire:
        # The server may have answered and closed already.
        with suppress(ConnectionError):
            wire.send(request)
        return wire.answer()


def get(target: bytes, *headers: bytes, version: bytes = b"HTTP/1.1") -> bytes:
    """Return a GET, with lines of headers behind the Host."""
    more = b"".join(line + b"\r\n" for line in headers)
    return b"GET " + target + b" " + version + b"\r\n" + HOST + more + b"\r\n"


def post(body: bytes, *headers: bytes, length: object = None) -> bytes:
    """Return a POST of a job. `length` is declared in place of the body's own."""
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
