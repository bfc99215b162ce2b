"""The sockets that systemd hands to a service (sd_listen_fds(3))."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

_FIRST_DESCRIPTOR = 3


def inherited_sockets(env: Mapping[str, str], pid: int) -> list[socket.socket]:
    """Return the sockets that listen already when this process starts; none without systemd.

    Args:
        env: Environment, where systemd says how many there are, and whose.
        pid: This process's id: a child inherits the environment, but not the sockets.
    """
    if env.get("LISTEN_PID") != str(pid):
        return []
    count = int(env.get("LISTEN_FDS", "0"))
    return [socket.socket(fileno=_FIRST_DESCRIPTOR + number) for number in range(count)]


def listening_host(sockets: list[socket.socket], default: str) -> str:
    """Return the address that the sockets listen on; `localhost` for Unix sockets.

    Where they are several, that of one which others than this machine reach, if there is one.
    """
    hosts = [
        "localhost" if each.family == socket.AF_UNIX else str(each.getsockname()[0])
        for each in sockets
    ]
    public = [host for host in hosts if host not in ("localhost", "127.0.0.1", "::1")]
    return next(iter([*public, *hosts]), default)


def of_this_process() -> list[socket.socket]:
    """Return `inherited_sockets` of this process."""
    return inherited_sockets(os.environ, os.getpid())
