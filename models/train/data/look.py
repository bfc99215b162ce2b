"""A first look at pictures, to choose a recipe by."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from models.networks.network_config import MOST_CHANNELS
from models.train.data.arrays import load_array
from models.train.data.folder import find_pictures
from models.train.data.images import BadData, Size
from models.train.data.picture import UNREADABLE

_LOOKED_AT = 64
_THUMBNAIL = (32, 32)


@dataclass(frozen=True, slots=True)
class Look:
    """What the pictures are like.

    Attributes:
        images: How many there are, broken ones included.
        side: Pixels of the shorter side; the median of a few. Height and width of arrays that are
            not square.
        channels: Those of an array; else 1 where those few are grey, and 3 where not.
        is_fixed: Whether all have this size, and cannot be given another.
    """

    images: int
    side: Size
    channels: int
    is_fixed: bool


def look_at(path: Path) -> Look:
    """Look at some of the pictures of a folder, or at the shape of an array.

    Raises:
        BadData: There are none, or none can be read, or an array has too many channels.
    """
    if not path.exists():
        raise BadData(f"{path} does not exist; name a folder of pictures, an IDX file or an npz")
    if path.is_dir():
        return _of_a_folder(path)
    shape = load_array(path).shape
    count, height, width, channels = (*shape, 1)[:4]
    if not 1 <= channels <= MOST_CHANNELS:
        raise BadData(
            f"{path} holds an array of shape {shape}; give images of 1 to {MOST_CHANNELS} channels,"
            " (N, H, W) or (N, H, W, C)"
        )
    side = height if height == width else (height, width)
    return Look(count, side, channels, is_fixed=True)


def _of_a_folder(folder: Path) -> Look:
    names = find_pictures(folder)
    sides: list[int] = []
    grey = True
    for name in names[:: max(1, len(names) // _LOOKED_AT)]:
        try:
            with Image.open(folder / name) as image:
                sides.append(min(image.size))
                grey = grey and _is_grey(image)
        # All that cannot be read are named when the run begins.
        except UNREADABLE:
            continue
    if not sides:
        raise BadData(f"{folder} holds no image files; give PNG, JPEG or WebP files below it")
    return Look(len(names), int(statistics.median(sides)), 1 if grey else 3, is_fixed=False)


def _is_grey(image: Image.Image) -> bool:
    if image.mode in ("1", "L", "LA") or image.mode.startswith("I"):
        return True
    pixels = np.asarray(image.convert("RGB").resize(_THUMBNAIL)).astype(int)
    return bool(np.ptp(pixels, axis=2).max() <= 2)
