"""The folder with the service's state: one `ddpm up` at a time, and nobody else's to read."""

from __future__ import annotations

from pathlib import Path

from cli.faults import Fault
from cli.lock import AlreadyLocked, take

# The server of a supervisor that was killed a moment ago is still writing.
_WAIT_S = 3.0


def valkey_folder(data_dir: Path) -> Path:
    """Make the folder of the job store, which only the user may enter.

    The queue holds what clients asked for and got.

    Raises:
        Fault: The folder cannot be made or used.
    """
    folder = data_dir.absolute() / "valkey"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise Fault(
            f"the data folder {data_dir} cannot be used ({error.strerror}); "
            "name another with DDPM_DATA_DIR"
        ) from None
    return folder


def lock(folder: Path) -> int:
    """Lock the folder and return the descriptor that holds it.

    The lock lasts for as long as any process has the descriptor open; the server inherits it.

    Raises:
        Fault: Another `ddpm up` holds the folder.
    """
    try:
        return take(folder / "lock", _WAIT_S)
    except AlreadyLocked as pid:
        raise Fault(
            f"{folder.parent} is in use by another `ddpm up` (pid {pid}); "
            "stop it, or set another DDPM_DATA_DIR"
        ) from None
