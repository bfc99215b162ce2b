"""The folder with the service's state: one `ddpm up` at a time, and nobody else's to read."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from cli.faults import Fault

_WAIT_S = 3.0  # the server of a supervisor that was killed a moment ago is still writing


def valkey_folder(data_dir: Path) -> Path:
    """Only the user may enter: the queue holds what clients asked for and got."""
    folder = data_dir.absolute() / "valkey"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise Fault(f"the data folder {data_dir} cannot be used ({error.strerror}); name another with DDPM_DATA_DIR") from None
    return folder


def lock(folder: Path) -> int:
    """A descriptor that holds the folder for as long as any process has it open; the server inherits it."""
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + _WAIT_S
    while not _try_lock(fd):
        if time.monotonic() > deadline:
            holder = os.pread(fd, 32, 0).decode() or "unknown"
            os.close(fd)
            raise Fault(f"{folder.parent} is in use by another `ddpm up` (pid {holder}); stop it, or set another DDPM_DATA_DIR")
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
