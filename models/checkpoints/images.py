"""Images of pixels, and grids of them."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image
from torch import Tensor


def to_image(pixels: Tensor) -> Image.Image:
    """Make an image of uint8 (C, H, W), with one channel to four: L, LA, RGB or RGBA."""
    array = pixels.cpu().numpy()
    if len(array) == 1:
        return Image.fromarray(array[0])
    return Image.fromarray(np.ascontiguousarray(array.transpose(1, 2, 0)))


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
