"""A file that one process at a time holds, with that process's id in it."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path


class AlreadyLocked(Exception):
    """Another process holds the file; the text is the id of the one that locked it.

    Attributes:
        heir: The id of a process that holds the file since the one that locked it has ended. None
            if that one still runs, or if this cannot be found out.
    """

    def __init__(self, locked_by: str, heir: int | None = None) -> None:
        super().__init__(locked_by)
        self.heir = heir


def take(path: Path, wait_s: float = 0.0) -> int:
    """Lock `path` and return the descriptor that holds it.

    The lock lasts for as long as any process has the descriptor open.

    Raises:
        AlreadyLocked: Another process still holds it after `wait_s` seconds.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + wait_s
    while not _try_lock(fd):
        if time.monotonic() > deadline:
            holder = os.pread(fd, 32, 0).decode() or "unknown"
            os.close(fd)
            raise AlreadyLocked(holder, _heir(path, holder))
        time.sleep(0.1)
    os.ftruncate(fd, 0)
    os.pwrite(fd, str(os.getpid()).encode(), 0)
    return fd


def _heir(path: Path, locked_by: str) -> int | None:
    """Find a process that has the file open, if the one that locked it has not. Linux only."""
    holders = []
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        # Processes end meanwhile, and other users' cannot be asked.
        with suppress(OSError):
            if link.readlink() == path.resolve():
                holders.append(link.parts[2])
    if locked_by in holders:
        return None
    return next((int(pid) for pid in holders if pid != str(os.getpid())), None)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
