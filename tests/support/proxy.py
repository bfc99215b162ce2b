"""A proxy between clients and Redis that counts round trips, and can turn to another server."""

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
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept).start()

    def lead_to(self, redis_url: str) -> None:
        """Lead new connections to another server; those that there are stay as they are."""
        server = urlsplit(redis_url)
        self._server = (server.hostname, server.port)

    def turn_to(self, redis_url: str) -> None:
        """Close all connections, and connect clients to another server from now on."""
        self.lead_to(redis_url)
        self._hang_up()

    def close(self) -> None:
        """Close all connections, and accept no others."""
        _close(self._listening)
        self._hang_up()

    def _hang_up(self) -> None:
        while self._sockets:
            _close(self._sockets.pop())

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client = self._listening.accept()[0]
                try:
                    server = socket.create_connection(self._server)
                except OSError:
                    _close(client)
                    continue
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
        # The server has gone, and the client must learn of it.
        with suppress(OSError):
            self._client.shutdown(socket.SHUT_RDWR)


def _close(connection: socket.socket) -> None:
    with suppress(OSError):  # closed by its other end
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


@contextmanager
def proxy(redis_url: str) -> Iterator[Proxy]:
    """Stand between Redis and whoever connects to the proxy's `url`."""
    listening = socket.create_server(("127.0.0.1", 0))
    between = Proxy(listening, redis_url)
    try:
        yield between
    finally:
        between.close()
