"""The classes of images, as numbers: those of folders, of an IDX file or of an npz."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from models.train.data.images import BadData, KnownClasses, Labels, listed

# An IDX file of bytes with one dimension.
_MAGIC = b"\0\0\x08\x01"
_IMAGES, _LABELS = "images-idx3", "labels-idx1"
_GZIP = b"\x1f\x8b"
_OF_NUMPY = "write it with numpy.savez(FILE, images=ARRAY, labels=NUMBERS)"


def of_folders(folder: Path, files: Sequence[str], known: KnownClasses | None = None) -> Labels:
    """Take the first folder of each file's name as its class, in the order of the alphabet.

    Args:
        folder: Where the files are.
        files: Their names, with `/`.
        known: Classes that they must be of. None: all that there are.

    Raises:
        BadData: A file lies in no folder, there is only one folder, or one is of no known class.
    """
    of_files = [file.partition("/")[0] if "/" in file else "" for file in files]
    if loose := [file for file, name in zip(files, of_files, strict=True) if not name]:
        raise BadData(
            f"{folder}: {listed(loose)} in no folder of a class; put each class into a folder of"
            " its own, or leave out data.classes"
        )
    found = tuple(sorted(set(of_files)))
    if known is None and len(found) < 2:
        raise BadData(
            f"{folder} has pictures in one folder only, {found[0]}; classes are two or more:"
            " leave out data.classes"
        )
    names = known.names if known and known.names is not None else found
    if strange := [name for name in found if name not in names]:
        raise BadData(
            f"{folder}: {listed(strange)} are no classes of the model, which has {listed(names)};"
            " rename these folders"
        )
    if known and known.count != len(names):
        raise BadData(
            f"{folder} has {len(names)} classes, {listed(names)}, and the model has {known.count};"
            " give as many"
        )
    number = {name: label for label, name in enumerate(names)}
    return Labels(torch.tensor([number[name] for name in of_files]), len(names), names)


def beside(path: Path, images: int, known: KnownClasses | None = None) -> Labels:
    """Read the labels of an IDX file, which lie beside it, or of an npz, which lie in it.

    Args:
        path: The file of the images.
        images: How many there are.
        known: Classes that they must be of. None: as many as the largest label says.

    Raises:
        BadData: There are none, or not as many as images, or they cannot be read.
    """
    where, values = _of_npz(path) if path.suffix == ".npz" else _of_idx(path)
    if len(values) != images:
        raise BadData(f"{where} has {len(values)} labels for {images} images; give one for each")
    labels = torch.from_numpy(values.astype(np.int64))
    least, most = int(labels.min()), int(labels.max())
    count = known.count if known else most + 1
    if least < 0 or most >= count:
        wrong = least if least < 0 else most
        raise BadData(f"{where} has the label {wrong}; the classes are 0 to {count - 1}")
    if count < 2:
        raise BadData(f"{where} has one class only; leave out data.classes")
    return Labels(labels, count, known.names if known else None)


def _of_idx(path: Path) -> tuple[Path, np.ndarray]:
    name = path.name.replace(_IMAGES, _LABELS)
    if name == path.name:
        raise BadData(
            f"{path} says nothing of its labels; name it like train-{_IMAGES}-ubyte, and its"
            f" labels train-{_LABELS}-ubyte beside it"
        )
    both = (path.with_name(name), path.with_name(f"{name.removesuffix('.gz')}"))
    others = (*both, path.with_name(f"{name}.gz"))
    file = next((other for other in others if other.is_file()), None)
    if file is None:
        raise BadData(f"{both[0]} does not exist, and would hold the labels; put it there")
    try:
        raw = file.read_bytes()
        raw = gzip.decompress(raw) if raw.startswith(_GZIP) else raw
    except (OSError, EOFError, zlib.error, MemoryError) as error:
        raise BadData(f"{file} cannot be read ({error}); download it again") from None
    if raw[:4] != _MAGIC or len(raw) < 8:
        raise BadData(f"{file} is not an IDX file of bytes with one dimension; give labels")
    if len(raw) - 8 != struct.unpack(">I", raw[4:8])[0]:
        raise BadData(f"{file} does not hold what its header promises; download it again")
    return file, np.frombuffer(raw, np.uint8, offset=8)


def _of_npz(path: Path) -> tuple[str, np.ndarray]:
    where = f"{path}: array 'labels'"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            values = arrays.get("labels")
    except (OSError, ValueError, EOFError, zlib.error, MemoryError) as error:
        raise BadData(f"{where} cannot be read ({error}); {_OF_NUMPY}") from None
    if values is None:
        raise BadData(f"{path} has no array 'labels' for data.classes; {_OF_NUMPY}")
    if values.dtype.kind not in "iu" or values.ndim != 1:
        raise BadData(f"{where} is {values.dtype} of shape {values.shape}; give whole numbers (N,)")
    return where, values
