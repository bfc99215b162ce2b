"""Weights that were replaced or removed, and that jobs which were accepted before still need.

They lie in `.kept` below the folder of added models, each in a folder of any name. What is in such
a folder is a whole model folder, whose card says which model it was.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from models.checkpoints.catalog import Card, CatalogError, read_card

KEPT = ".kept"
# of linux/fcntl.h and linux/fs.h
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def kept_models(roots: Iterable[Path]) -> dict[Path, Card]:
    """Return the cards of the models that are kept below these roots, by folder.

    One that cannot be read is left out: it is about to be deleted.
    """
    found = {}
    for root in roots:
        for card in sorted(root.glob(f"{KEPT}/[!.]*/card.json")):
            with suppress(CatalogError):
                found[card.parent] = read_card(card.parent)
    return found


def put_in_place(new: Path, place: Path) -> None:
    """Move a whole model folder to its place. What lies there is kept.

    Where the system can exchange two names at once, there is no moment without the model, and a
    kill at any moment leaves the old weights or the new ones.

    Args:
        new: the folder, on the same file system.
        place: its place, a name in the folder of added models.

    Raises:
        OSError: it cannot be moved.
    """
    if not place.exists():
        new.rename(place)
        return
    aside = _new_place(place.parent)
    new.rename(aside)
    try:
        exchange(aside, place)
    except OSError:
        old = _new_place(place.parent)
        place.rename(old)
        aside.rename(place)


def keep(folder: Path) -> None:
    """Take a model out of its folder of added models, and keep it for jobs that need it.

    Raises:
        OSError: it cannot be moved.
    """
    folder.rename(_new_place(folder.parent))


def forget(folder: Path) -> None:
    """Delete a kept model. It is out of sight before its files go.

    Raises:
        OSError: it cannot be deleted.
    """
    gone = folder.with_name(f".removing-{folder.name}")
    with suppress(FileNotFoundError):
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
    # that of another process, if it was not the last
    with suppress(OSError):
        folder.parent.rmdir()


def exchange(one: Path, other: Path) -> None:
    """Exchange two names at once.

    Raises:
        OSError: this system cannot, or the file system.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        raise OSError("this system cannot exchange two names")
    paths = os.fsencode(one), os.fsencode(other)
    if renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(other))


def _new_place(root: Path) -> Path:
    kept = root / KEPT
    kept.mkdir(exist_ok=True)
    return kept / uuid.uuid4().hex
