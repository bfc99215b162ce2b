"""Files that nobody sees half-written."""

from __future__ import annotations

import os
from pathlib import Path


def flush(path: Path) -> None:
    """To the disk, so that a power cut after it was renamed finds all of it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_whole(path: Path, content: bytes) -> None:
    """All of it or nothing. The process in the temporary name: two may write beside each other."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
