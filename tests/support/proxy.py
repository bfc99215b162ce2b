"""A proxy between a client and Redis that counts round trips."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit


class Proxy:
    """Counts in `trips` the round trips whose requests contain `topic`.

    A round trip is one however many commands and packets it has.
    """

    def __init__(self, listening: socket.socket, redis_url: str) -> None:
        server = urlsplit(redis_url)
        self.url = f"redis://127.0.0.1:{listening.getsockname()[1]}/0"
        self.topic = b"nothing yet"
        self.trips = 0
        self._listening = listening
        self._server = (server.hostname, server.port)
        self._sockets = [listening]
        threading.Thread(target=self._accept).start()

    def close(self) -> None:
        """Close all connections."""
        for each in self._sockets:
            with suppress(OSError):  # closed by its other end
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client = self._listening.accept()[0]
                server = socket.create_connection(self._server)
                self._sockets += [client, server]
                _Connection(self, client, server).start()


class _Connection:
    """One connection, both ways."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        # Whether the present round trip is counted.
        self._counted = False

    def start(self) -> None:
        """Forward both ways until an end closes."""
        threading.Thread(target=self._forward).start()
        threading.Thread(target=self._backward).start()

    def _forward(self) -> None:
        with suppress(OSError):
            while request := self._client.recv(1 << 20):
                if self._proxy.topic in request and not self._counted:
                    self._counted = True
                    self._proxy.trips += 1
                self._server.sendall(request)
            self._server.shutdown(socket.SHUT_RDWR)

    def _backward(self) -> None:
        with suppress(OSError):
            while answer := self._server.recv(1 << 20):
                self._counted = False
                self._client.sendall(answer)


@contextmanager
def proxy(redis_url: str) -> Iterator[Proxy]:
    """Stand between Redis and whoever connects to the proxy's `url`."""
    listening = socket.create_server(("127.0.0.1", 0))
    between = Proxy(listening, redis_url)
    try:
        yield between
    finally:
        between.close()
