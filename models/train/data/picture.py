"""One image file: whether it is a picture, and its pixels."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from models.train.data.images import BadData, Size, sides_of

# Pillow's modes by the number of channels
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
# Others that Pillow opens are no pictures (PDF, MPEG, EPS), or are found by too little (TGA).
_WANTED = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000")
_SUFFIXES = {
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pnm", ".pbm", ".avif", ".jp2", ".heic", ".heif", ".jxl"),
}
# what Pillow raises at damaged files
UNREADABLE = (
    *(OSError, ValueError, SyntaxError, EOFError, KeyError, IndexError, TypeError, OverflowError),
    *(NotImplementedError, MemoryError, struct.error, zlib.error, Image.DecompressionBombError),
)
# Levels of cameras with 10 or 12 bits, in files of 16: nobody says which of them is white.
_TWELVE_BITS = range(256, 4096)


class NoPicture(ValueError):
    """A file that is no picture, and does not pretend to be one by its name."""


def formats() -> list[str]:
    """Name the formats that this Pillow reads; some lack AVIF."""
    Image.init()
    return [name for name in _WANTED if name in Image.OPEN]


def check_header(path: Path) -> int:
    """Read the header of an image file, and return the file's size in bytes.

    Raises:
        NoPicture: It is something else, by content and by name.
        BadData: It is damaged, or in a format that cannot be read.
    """
    suffix = path.suffix.lower()
    try:
        with Image.open(path, formats=formats()) as image:
            _check_mode(image)
        return path.stat().st_size
    except UnidentifiedImageError:
        if suffix not in _SUFFIXES:
            raise NoPicture(path.name) from None
        raise BadData(_unidentified(path)) from None
    except UNREADABLE as error:
        raise BadData(str(error) or type(error).__name__) from None


def read_picture(
    path: Path,
    size: Size,
    channels: int,
    remedy: str = "give another, or save it anew as an 8-bit PNG",
) -> Tensor:
    """Read an image file, upright, centre-cropped and resized, on white if there is no alpha.

    Args:
        path: The file.
        size: Pixels a side, or height and width.
        channels: 1 for grey, 2 for grey with alpha, 3 for RGB, 4 for RGBA.
        remedy: What the error tells the user to do.

    Returns:
        uint8 (C, H, W).

    Raises:
        BadData: It cannot be read as an image.
    """
    try:
        return decode(path, size, channels)
    except UNREADABLE as error:
        reason = _unidentified(path) if isinstance(error, UnidentifiedImageError) else error
        raise BadData(f"{path} cannot be read as an image ({reason}); {remedy}") from None


def decode(path: Path, size: Size, channels: int) -> Tensor:
    """Read an image file as `read_picture` does. Raises one of UNREADABLE."""
    mode = _MODES[channels]
    height, width = sides_of(size)
    with Image.open(path, formats=formats()) as image:
        _check_mode(image)
        upright = ImageOps.exif_transpose(image)
        picture = _eight_bit(upright)
        flat = picture if mode.endswith("A") else _on_white(picture)
        fitted = ImageOps.fit(flat.convert(mode), (width, height), Image.Resampling.LANCZOS)
    return _channels_first(np.asarray(fitted))


def _unidentified(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(12)
    if not head:
        return "the file is empty"
    if head[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypheif"):
        return "it is HEIC, which Pillow does not read"
    if head[:2] == b"\xff\x0a" or head[4:8] == b"JXL ":
        return "it is JPEG XL, which Pillow does not read"
    return "its content is that of no image format that is read"


def _check_mode(image: Image.Image) -> None:
    """Refuse levels of an unknown range.

    Raises:
        ValueError: They are floating-point numbers, or integers of 32 bits.
    """
    if image.mode == "F":
        raise ValueError("its levels are floating-point numbers of unknown range")
    # Pillow opens 16-bit PGM as 32-bit integers, scaled to 65535.
    if image.mode == "I" and image.format not in ("PNG", "PPM"):
        raise ValueError("its levels are 32-bit integers of unknown range")


def _eight_bit(image: Image.Image) -> Image.Image:
    """Reduce 16-bit grey to 8 bits, as `convert` would clip it at 255 and leave a white image.

    Raises:
        ValueError: The levels are those of 12 bits or less, and would be dark.
    """
    if not image.mode.startswith("I"):
        return image
    extrema = image.getextrema()
    brightest = int(extrema[1])  # type: ignore[arg-type]
    if brightest in _TWELVE_BITS:
        raise ValueError(
            f"its levels end at {brightest} of 65535, as those of a 12-bit camera do;"
            " scale them before you save"
        )
    return image.point(lambda value: value / 256)


def _on_white(image: Image.Image) -> Image.Image:
    """Show white where the image is transparent: its colour there is whatever a program left."""
    if not image.has_transparency_data:
        return image
    picture = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)


def _channels_first(pixels: np.ndarray) -> Tensor:
    """Reorder (H, W) or (H, W, C) -> (C, H, W)."""
    image = torch.from_numpy(pixels.copy())
    return image[None] if image.ndim == 2 else image.permute(2, 0, 1)
