"""What stands between a client and Redis, and counts how often something is said and answered."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit


class Proxy:
    """`trips` counts round trips in which `about` is spoken of, each however many commands and packets."""

    def __init__(self, listening: socket.socket, redis_url: str) -> None:
        server = urlsplit(redis_url)
        self.url = f"redis://127.0.0.1:{listening.getsockname()[1]}/0"
        self.about, self.trips = b"nothing yet", 0
        self._listening, self._server = listening, (server.hostname, server.port)
        self._lines = [listening]
        threading.Thread(target=self._accept).start()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client = self._listening.accept()[0]
                _Line(self, client, socket.create_connection(self._server)).start(self._lines)

    def close(self) -> None:
        for line in self._lines:
            with suppress(OSError):  # closed by its other end
                line.shutdown(socket.SHUT_RDWR)
            line.close()


class _Line:
    """One connection, both ways."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy, self._client, self._server, self._counted = proxy, client, server, False

    def start(self, lines: list[socket.socket]) -> None:
        lines += [self._client, self._server]
        threading.Thread(target=self._forth).start()
        threading.Thread(target=self._back).start()

    def _forth(self) -> None:
        with suppress(OSError):
            while said := self._client.recv(1 << 20):
                if self._proxy.about in said and not self._counted:
                    self._counted = True
                    self._proxy.trips += 1
                self._server.sendall(said)
            self._server.shutdown(socket.SHUT_RDWR)

    def _back(self) -> None:
        with suppress(OSError):
            while answer := self._server.recv(1 << 20):
                self._counted = False
                self._client.sendall(answer)


@contextmanager
def proxy(redis_url: str) -> Iterator[Proxy]:
    listening = socket.create_server(("127.0.0.1", 0))
    between = Proxy(listening, redis_url)
    try:
        yield between
    finally:
        between.close()
