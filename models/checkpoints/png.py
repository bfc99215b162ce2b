"""PNGs of pixels, with the recipe that makes them again in the metadata; and contact sheets."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

# the tEXt entry of a PNG that holds its recipe, as JSON
METADATA_KEY = "ddpm"


def to_image(pixels: Tensor) -> Image.Image:
    """Make an image of uint8 (C, H, W), with one channel or three."""
    array = pixels.cpu().numpy()
    if len(array) == 1:
        return Image.fromarray(array[0])
    return Image.fromarray(np.ascontiguousarray(array.transpose(1, 2, 0)))


def png_with_recipe(pixels: Tensor, recipe: Mapping[str, Any]) -> bytes:
    """Encode uint8 (C, H, W) as a PNG whose metadata holds the recipe, as JSON with sorted keys.

    The same input gives the same bytes.
    """
    return png(pixels, {METADATA_KEY: json.dumps(dict(recipe), sort_keys=True)})


def png(pixels: Tensor, text: Mapping[str, str]) -> bytes:
    """Encode uint8 (C, H, W) as a PNG, with `text` as its tEXt entries.

    The same input gives the same bytes.
    """
    info = PngInfo()
    for key, value in text.items():
        info.add_text(key, value)
    out = io.BytesIO()
    to_image(pixels).save(out, "PNG", pnginfo=info)
    return out.getvalue()


def sheet(images: Tensor, columns: int | None = None) -> Image.Image:
    """Lay images, uint8 (N, C, H, W), out as a grid.

    Args:
        images: The images.
        columns: Columns of the grid. None: ceil(sqrt(N)).
    """
    columns = columns or math.ceil(math.sqrt(len(images)))
    height, width = images.shape[2:]
    first = to_image(images[0])
    canvas = Image.new(first.mode, (columns * width, math.ceil(len(images) / columns) * height))
    for i, image in enumerate(images):
        canvas.paste(to_image(image), (i % columns * width, i // columns * height))
    return canvas
