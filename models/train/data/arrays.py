"""Images in one file: IDX or npz. Other files are refused by what they are."""

from __future__ import annotations

import gzip
import math
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.train.data.images import BadData, Size, sides_of

_IDX_UINT8 = 0x08
_NPZ_ERRORS = (
    *(OSError, EOFError, ValueError, IndexError, TypeError, MemoryError),
    *(zipfile.BadZipFile, zlib.error),
)
_GZIP = b"\x1f\x8b"
_ZIP = b"PK\x03\x04"
_OF_NUMPY = "write it with numpy.savez(FILE, images=ARRAY), uint8 (N, H, W) or (N, H, W, C)"
_FOLDER = "unpack it, and give the folder"
_PICKLE = "a pickle, which can run code and is not opened"
# first bytes: what such a file is, and the remedy
_OTHERS = (
    (b"PAR1", "a Parquet file", "save its images as files, and give their folder"),
    (b"ARROW1", "an Arrow file", "save its images as files, and give their folder"),
    (b"\x93NUMPY", "an .npy, a bare array", _OF_NUMPY),
    (b"\x89HDF", "an HDF5 file", _OF_NUMPY),
    *((bytes([0x80, protocol]), _PICKLE, _OF_NUMPY) for protocol in range(2, 6)),
    (b"\x89PNG", "one picture", "give a folder of pictures"),
    (b"\xff\xd8\xff", "one picture", "give a folder of pictures"),
    (b"Rar!", "a RAR archive", _FOLDER),
    (b"7z\xbc\xaf", "a 7z archive", _FOLDER),
    (b"version https://git-lfs", "a pointer of Git LFS", "fetch the file with `git lfs pull`"),
)


def read_array(path: Path, size: Size, channels: int) -> Tensor:
    """Read the images of an IDX file (also gzipped) or an npz, known by its content.

    Args:
        path: The file.
        size: Pixels a side, or height and width.
        channels: 1 for grey, 2 for grey with alpha, 3 for RGB, 4 for RGBA.

    Returns:
        uint8 (N, C, H, W), maybe a view of an array with channels last.

    Raises:
        BadData: It cannot be read, is something else, or has images of another shape.
    """
    pixels = load_array(path)
    shape = tuple(pixels.shape[1:])
    height, width = sides_of(size)
    whole = (height, width, channels)
    if shape not in {whole[: 2 + (channels > 1)], whole}:
        wanted = f"(N, {height}, {width}" + (f", {channels})" if channels > 1 else ")")
        turned = " with channels last" if shape == (channels, height, width) else ""
        raise BadData(
            f"{path} holds an array of shape {tuple(pixels.shape)},"
            f" the network takes {wanted}{turned}"
        )
    if not len(pixels):
        raise BadData(f"{path} holds no images; give at least one")
    stacked = torch.from_numpy(pixels)
    return stacked[:, None] if stacked.ndim == 3 else stacked.permute(0, 3, 1, 2)


def load_array(path: Path) -> np.ndarray:
    """Read the array of a file, uint8 (N, H, W) or (N, H, W, C).

    Raises:
        BadData: It cannot be read, or is something else.
    """
    try:
        with path.open("rb") as file:
            head = file.read(264)
    except OSError as error:
        raise BadData(f"{path} cannot be read ({error.strerror}); name another") from None
    return _read_npz(path) if head.startswith(_ZIP) else _read_idx(path, head)


def _read_idx(path: Path, head: bytes) -> np.ndarray:
    opener = gzip.open if head.startswith(_GZIP) else open
    try:
        with opener(path, "rb") as file:
            raw = file.read()
    except (OSError, EOFError, zlib.error, MemoryError) as error:
        raise BadData(f"{path} cannot be read ({error}); download it again") from None
    is_idx = len(raw) >= 4 and raw[:2] == b"\0\0" and raw[2] == _IDX_UINT8 and raw[3] in (3, 4)
    if not is_idx or len(raw) < 4 + 4 * raw[3]:
        raise BadData(f"{path} {_what_it_is(raw, path.suffix)}")
    shape = struct.unpack_from(f">{raw[3]}I", raw, 4)
    pixels = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    if pixels.size != math.prod(shape):
        raise BadData(
            f"{path} holds {pixels.size} bytes where its header promises {math.prod(shape)};"
            " download it again"
        )
    return pixels.reshape(shape).copy()


def _what_it_is(raw: bytes, suffix: str) -> str:
    for first, kind, remedy in _OTHERS:
        if raw.startswith(first):
            return f"is {kind}; {remedy}"
    if raw[257:262] == b"ustar":
        return f"is a tar archive; {_FOLDER}"
    if suffix == ".npz":
        return f"is not an npz of plain arrays; {_OF_NUMPY}"
    return "is not an IDX file of bytes with 3 or 4 dimensions; give images in IDX, npz or a folder"


def _read_npz(path: Path) -> np.ndarray:
    """Read the array `images`, or else the first, into memory once."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if not any(member.endswith(".npy") for member in arrays.zip.namelist()):
                raise BadData(f"{path} is a zip archive without arrays; {_FOLDER}")
            name = "images" if "images" in arrays else arrays.files[0]
            pixels: np.ndarray = arrays[name]
    except BadData:
        raise
    except _NPZ_ERRORS as error:
        raise BadData(
            f"{path} is not an npz of plain arrays ({error}); write it with numpy.savez"
        ) from None
    if getattr(pixels, "dtype", None) != np.uint8 or pixels.ndim not in (3, 4):
        kind = f"{pixels.dtype} of shape {pixels.shape}" if hasattr(pixels, "dtype") else "no array"
        raise BadData(f"{path}: array {name!r} is {kind}; give uint8 (N, H, W) or (N, H, W, C)")
    return pixels
