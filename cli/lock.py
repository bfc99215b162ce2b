"""A file that one process at a time holds, with that process's id in it."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path


class AlreadyLocked(Exception):
    """Another process holds the file; the text is its id."""


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
            raise AlreadyLocked(holder)
        time.sleep(0.1)
    os.ftruncate(fd, 0)
    os.pwrite(fd, str(os.getpid()).encode(), 0)
    return fd


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
