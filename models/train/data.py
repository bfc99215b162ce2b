"""Images to train on and to evaluate with: an IDX file, an npz or a folder, as bytes in (N, C, H, W)."""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
_IDX_UINT8 = 0x08
# A run is known by its pictures' names, so none may go. What a file holds is found by its content, not by its suffix.
_REMEDY_IN_A_FOLDER = (
    "put an 8-bit PNG or JPEG in its place, under the same name, and run the same command again"
)


class BadData(ValueError):
    """The data cannot be used; the text names the file and the remedy."""


class Images(Protocol):
    """`len(images)` pictures; `batch` gives uint8 of shape (B, C, H, W) for the indices (B,).

    `identity` tells them, in this order, from others: a run that resumes goes on through the same permutation.
    """

    @property
    def identity(self) -> str: ...
    def __len__(self) -> int: ...
    def batch(self, indices: Tensor) -> Tensor: ...


class ArrayImages:
    """Images that lie in memory: uint8 (N, C, H, W)."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels

    @property
    def identity(self) -> str:
        """A hash of the pixels."""
        return hashlib.sha256(self.pixels.contiguous().numpy().data).hexdigest()

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, indices: Tensor) -> Tensor:
        return self.pixels[indices]


class FolderImages:
    """Image files below a folder, decoded when asked for; each is centre-cropped and resized to `size` pixels."""

    def __init__(self, folder: Path, size: int, channels: int) -> None:
        self.paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES)
        if not self.paths:
            raise BadData(f"{folder} holds no image files; give PNG, JPEG or WebP files below it")
        self.folder, self.size, self.channels = folder, size, channels
        self._readers = ThreadPoolExecutor(thread_name_prefix="decode")

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def identity(self) -> str:
        """A hash of the names: reading every file would take as long as an epoch."""
        names = "\0".join(path.relative_to(self.folder).as_posix() for path in self.paths)
        return hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()

    def batch(self, indices: Tensor) -> Tensor:
        return torch.stack(list(self._readers.map(self._read, indices.tolist())))

    def _read(self, index: int) -> Tensor:
        return read_picture(self.paths[index], self.size, self.channels, _REMEDY_IN_A_FOLDER)


def read_picture(
    path: Path,
    size: int,
    channels: int,
    remedy: str = "give another, or save it anew as an 8-bit PNG",
) -> Tensor:
    """Upright, on white, centre-cropped and resized: uint8 (C, size, size). Raises BadData."""
    mode = "L" if channels == 1 else "RGB"
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            fitted = ImageOps.fit(
                _on_white(_eight_bit(upright)).convert(mode), (size, size), Image.Resampling.LANCZOS
            )
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadData(f"{path} cannot be read as an image ({error}); {remedy}") from None
    return _channels_first(np.asarray(fitted))


def open_images(path: Path, size: int, channels: int) -> Images:
    """IDX (also gzipped), npz or a folder. Raises BadData where it does not fit `size` and `channels`."""
    if path.is_dir():
        return FolderImages(path, size, channels)
    if not path.is_file():
        raise BadData(
            f"{path} does not exist; for Fashion-MNIST install the Debian package dataset-fashion-mnist"
        )
    pixels = _read_npz(path) if path.suffix == ".npz" else _read_idx(path)
    if pixels.shape[1:] != (channels, size, size):
        raise BadData(
            f"{path} holds images of shape {tuple(pixels.shape[1:])}, the network takes {(channels, size, size)}"
        )
    if not len(pixels):
        raise BadData(f"{path} holds no images; give at least one")
    return ArrayImages(pixels)


def _read_idx(path: Path) -> Tensor:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            raw = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise BadData(f"{path} cannot be read ({error}); download it again") from None
    if (
        len(raw) < 4
        or raw[:2] != b"\0\0"
        or raw[2] != _IDX_UINT8
        or raw[3] not in (3, 4)
        or len(raw) < 4 + 4 * raw[3]
    ):
        raise BadData(
            f"{path} is not an IDX file of bytes with 3 or 4 dimensions; give images in IDX, npz or a folder"
        )
    shape = struct.unpack_from(f">{raw[3]}I", raw, 4)
    pixels = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    if pixels.size != math.prod(shape):
        raise BadData(
            f"{path} holds {pixels.size} bytes where its header promises {math.prod(shape)}; download it again"
        )
    return _batch_channels_first(pixels.reshape(shape))


def _read_npz(path: Path) -> Tensor:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            name = "images" if "images" in arrays else arrays.files[0]
            pixels = arrays[name]
    except (
        OSError,
        EOFError,
        ValueError,
        IndexError,
        TypeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise BadData(
            f"{path} is not an npz of plain arrays ({error}); write it with numpy.savez"
        ) from None
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4):
        raise BadData(
            f"{path}: array {name!r} is {pixels.dtype} of shape {pixels.shape}; give uint8 (N, H, W) or (N, H, W, C)"
        )
    return _batch_channels_first(pixels)


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey to 8: `convert` would clip it at 255, which leaves a white picture. Of floats nobody knows what white is."""
    if image.mode == "F":
        raise ValueError("its levels are floating-point numbers of unknown range")
    return image.point(lambda value: value / 256) if image.mode.startswith("I") else image


def _on_white(image: Image.Image) -> Image.Image:
    """What is beneath transparency is whatever colour a program left there; it shows as white instead."""
    if not image.has_transparency_data:
        return image
    picture = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)


def _batch_channels_first(pixels: np.ndarray) -> Tensor:
    """(N, H, W) or (N, H, W, C) -> (N, C, H, W)."""
    stacked = torch.from_numpy(pixels.copy())
    return stacked[:, None] if stacked.ndim == 3 else stacked.permute(0, 3, 1, 2).contiguous()


def _channels_first(pixels: np.ndarray) -> Tensor:
    """(H, W) or (H, W, C) -> (C, H, W)."""
    image = torch.from_numpy(pixels.copy())
    return image[None] if image.ndim == 2 else image.permute(2, 0, 1)
