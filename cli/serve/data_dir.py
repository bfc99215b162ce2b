"""The folder with the service's state: one `ddpm up` at a time, and nobody else's to read."""

from __future__ import annotations

from pathlib import Path

from cli.faults import Fault
from cli.lock import AlreadyLocked, take

# The server of a supervisor that was killed a moment ago is still writing.
WAIT_S = 3.0


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


def lock(folder: Path, wait_s: float = WAIT_S) -> int:
    """Lock the folder and return the descriptor that holds it.

    The lock lasts for as long as any process has the descriptor open; the server inherits it.

    Args:
        folder: Folder of the job store.
        wait_s: Seconds to wait for another holder to let go.

    Raises:
        Fault: Another `ddpm up` holds the folder.
    """
    try:
        return take(folder / "lock", wait_s)
    except AlreadyLocked as holder:
        if holder.heir:
            raise Fault(
                f"{folder.parent} is in use by the job store (pid {holder.heir}) of a `ddpm up` "
                f"that has ended (pid {holder}); stop it with `kill {holder.heir}`, or set another "
                "DDPM_DATA_DIR"
            ) from None
        raise Fault(
            f"{folder.parent} is in use by another `ddpm up` (pid {holder}); "
            "stop it, or set another DDPM_DATA_DIR"
        ) from None
