"""Attackers, each for a process of its own.

They are not in `__main__`, which a process that is spawned does not import again.
"""

from __future__ import annotations

import socket
import time
from contextlib import suppress


def send_endlessly(port: int, first: bytes, part: bytes) -> None:
    """Send on one connection, for ever. Runs in a process of its own."""
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)) as attacker:
            attacker.sendall(first)
            while True:
                attacker.sendall(part)


def hold_half_requests(port: int, count: int) -> None:
    """Keep `count` connections open, each with half a request. Runs in a process of its own."""
    held: list[socket.socket] = []
    while True:
        with suppress(OSError):
            attacker = socket.create_connection(("127.0.0.1", port))
            held.append(attacker)
            attacker.sendall(b"GET /healthz HTTP/1.1\r\n")
        if len(held) > count:
            held.pop(0).close()
            time.sleep(0.001)
