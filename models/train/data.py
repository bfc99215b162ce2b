"""Images to train on and to evaluate with: an IDX file, an npz or a folder, as uint8 pixels."""

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
# A run is identified by its images' names, so none may go. A file's format is found by its content,
# not by its suffix.
_REMEDY_IN_A_FOLDER = (
    "put an 8-bit PNG or JPEG in its place, under the same name, and run the same command again"
)


class BadData(ValueError):
    """The data cannot be used; the text names the file and the remedy."""


class Images(Protocol):
    """A set of images in an order."""

    @property
    def identity(self) -> str:
        """Name of these images in this order.

        A run that resumes continues through the same permutation, so it must have the same images.
        """

    def __len__(self) -> int:
        """Count the images."""

    def batch(self, indices: Tensor) -> Tensor:
        """Read the images of the indices, (B,): uint8 (B, C, H, W)."""


class ArrayImages:
    """Images in memory."""

    def __init__(self, pixels: Tensor) -> None:
        """Take the pixels, uint8 (N, C, H, W)."""
        self.pixels = pixels

    @property
    def identity(self) -> str:
        """A hash of the pixels."""
        return hashlib.sha256(self.pixels.contiguous().numpy().data).hexdigest()

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, indices: Tensor) -> Tensor:
        """Read the images of the indices, (B,): uint8 (B, C, H, W)."""
        return self.pixels[indices]


class FolderImages:
    """Image files below a folder, decoded when they are asked for."""

    def __init__(self, folder: Path, size: int, channels: int) -> None:
        """List the files. Images are centre-cropped and resized to `size` pixels a side.

        Raises:
            BadData: There are none.
        """
        self.paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES)
        if not self.paths:
            raise BadData(f"{folder} holds no image files; give PNG, JPEG or WebP files below it")
        self.folder = folder
        self.size = size
        self.channels = channels
        self._readers = ThreadPoolExecutor(thread_name_prefix="decode")

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def identity(self) -> str:
        """A hash of the names: reading every file would take as long as an epoch."""
        names = "\0".join(path.relative_to(self.folder).as_posix() for path in self.paths)
        return hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()

    def batch(self, indices: Tensor) -> Tensor:
        """Decode the images of the indices, (B,): uint8 (B, C, H, W).

        Raises:
            BadData: An image cannot be read.
        """
        return torch.stack(list(self._readers.map(self._read, indices.tolist())))

    def _read(self, index: int) -> Tensor:
        return read_picture(self.paths[index], self.size, self.channels, _REMEDY_IN_A_FOLDER)


def read_picture(
    path: Path,
    size: int,
    channels: int,
    remedy: str = "give another, or save it anew as an 8-bit PNG",
) -> Tensor:
    """Read an image file, upright, on white, centre-cropped and resized.

    Args:
        path: The file.
        size: Pixels a side.
        channels: 1 for grey, 3 for RGB.
        remedy: What the error tells the user to do.

    Returns:
        uint8 (C, size, size).

    Raises:
        BadData: It cannot be read as an image.
    """
    mode = "L" if channels == 1 else "RGB"
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            flat = _on_white(_eight_bit(upright)).convert(mode)
            fitted = ImageOps.fit(flat, (size, size), Image.Resampling.LANCZOS)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadData(f"{path} cannot be read as an image ({error}); {remedy}") from None
    return _channels_first(np.asarray(fitted))


def open_images(path: Path, size: int, channels: int) -> Images:
    """Open an IDX file (also gzipped), an npz or a folder.

    Args:
        path: The file or folder.
        size: Pixels a side.
        channels: 1 for grey, 3 for RGB.

    Raises:
        BadData: It cannot be read, or its images are of another size or number of channels.
    """
    if path.is_dir():
        return FolderImages(path, size, channels)
    if not path.is_file():
        raise BadData(
            f"{path} does not exist;"
            " for Fashion-MNIST install the Debian package dataset-fashion-mnist"
        )
    pixels = _read_npz(path) if path.suffix == ".npz" else _read_idx(path)
    if pixels.shape[1:] != (channels, size, size):
        raise BadData(
            f"{path} holds images of shape {tuple(pixels.shape[1:])},"
            f" the network takes {(channels, size, size)}"
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
    is_idx = len(raw) >= 4 and raw[:2] == b"\0\0" and raw[2] == _IDX_UINT8 and raw[3] in (3, 4)
    if not is_idx or len(raw) < 4 + 4 * raw[3]:
        raise BadData(
            f"{path} is not an IDX file of bytes with 3 or 4 dimensions;"
            " give images in IDX, npz or a folder"
        )
    shape = struct.unpack_from(f">{raw[3]}I", raw, 4)
    pixels = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    if pixels.size != math.prod(shape):
        raise BadData(
            f"{path} holds {pixels.size} bytes where its header promises {math.prod(shape)};"
            " download it again"
        )
    return _batch_channels_first(pixels.reshape(shape))


_NPZ_ERRORS = (OSError, EOFError, ValueError, IndexError, TypeError, zipfile.BadZipFile, zlib.error)


def _read_npz(path: Path) -> Tensor:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            name = "images" if "images" in arrays else arrays.files[0]
            pixels = arrays[name]
    except _NPZ_ERRORS as error:
        raise BadData(
            f"{path} is not an npz of plain arrays ({error}); write it with numpy.savez"
        ) from None
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4):
        raise BadData(
            f"{path}: array {name!r} is {pixels.dtype} of shape {pixels.shape};"
            " give uint8 (N, H, W) or (N, H, W, C)"
        )
    return _batch_channels_first(pixels)


def _eight_bit(image: Image.Image) -> Image.Image:
    """Reduce 16-bit grey to 8 bits, as `convert` would clip it at 255 and leave a white image.

    Raises:
        ValueError: The levels are floating-point numbers, which may be of any range.
    """
    if image.mode == "F":
        raise ValueError("its levels are floating-point numbers of unknown range")
    return image.point(lambda value: value / 256) if image.mode.startswith("I") else image


def _on_white(image: Image.Image) -> Image.Image:
    """Show white where the image is transparent: its colour there is whatever a program left."""
    if not image.has_transparency_data:
        return image
    picture = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)


def _batch_channels_first(pixels: np.ndarray) -> Tensor:
    """Reorder (N, H, W) or (N, H, W, C) -> (N, C, H, W)."""
    stacked = torch.from_numpy(pixels.copy())
    return stacked[:, None] if stacked.ndim == 3 else stacked.permute(0, 3, 1, 2).contiguous()


def _channels_first(pixels: np.ndarray) -> Tensor:
    """Reorder (H, W) or (H, W, C) -> (C, H, W)."""
    image = torch.from_numpy(pixels.copy())
    return image[None] if image.ndim == 2 else image.permute(2, 0, 1)
