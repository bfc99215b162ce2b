"""A server that speaks Redis' protocol and answers every command with one error."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from hiredis import Reader

_HELLO = (
    b"%3\r\n$6\r\nserver\r\n$5\r\nredis\r\n$5\r\nproto\r\n:3\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n"
)
# What a client asks when it connects.
_GREETINGS = {b"HELLO": _HELLO, b"CLIENT": b"+OK\r\n", b"SELECT": b"+OK\r\n"}


class ErrorServer(socketserver.ThreadingTCPServer):
    """Answers with `error`, and counts the connections that were made to it."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Client)
        self.error = "ERR nothing was said"
        self.connections = 0

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"redis://127.0.0.1:{self.server_address[1]}/0"


class _Client(socketserver.BaseRequestHandler):
    server: ErrorServer

    def handle(self) -> None:
        self.server.connections += 1
        reader = Reader()
        while sent := self.request.recv(65536):
            reader.feed(sent)
            while (command := reader.gets()) is not False:
                error = f"-{self.server.error}\r\n".encode()
                self.request.sendall(_GREETINGS.get(command[0].upper(), error))


@contextmanager
def error_server() -> Iterator[ErrorServer]:
    """Run such a server on a free port."""
    with ErrorServer() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
