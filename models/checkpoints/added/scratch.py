"""Scratch folders that go with the process that made them, even if it is killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from models.checkpoints.added.kept import KEPT

ADDING = ".adding-"
REMOVING = ".removing-"


@contextmanager
def scratch_folder(root: Path) -> Iterator[Path]:
    """Make a folder below `root` that is removed at the end.

    While the process lives it holds a lock on the folder. So the next one can tell what nobody owns
    any more (`remove_ownerless`).

    Raises:
        OSError: The folder cannot be made.
    """
    folder, lock = _locked_folder(root)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _locked_folder(root: Path) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(dir=root, prefix=ADDING))
        lock = os.open(folder, os.O_RDONLY)
        # Not every file system has locks. Such a folder is nobody's, and nobody removes it.
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        # Otherwise another process removed it in between.
        if folder.exists():
            return folder, lock
        os.close(lock)


def remove_ownerless(root: Path) -> list[Path]:
    """Remove what processes left below `root` that were killed; return what it was.

    What a living process owns stays, and so does what may not be removed.
    """
    removed = []
    for parent in (root, root / KEPT):
        for folder in [*parent.glob(f"{ADDING}*"), *parent.glob(f"{REMOVING}*")]:
            with suppress(OSError):
                lock = os.open(folder, os.O_RDONLY)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder)
                    removed.append(folder)
                finally:
                    os.close(lock)
    return removed
