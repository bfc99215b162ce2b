"""Bytes to pictures: PNGs, and sheets of them."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor


def picture(pixels: Tensor) -> Image.Image:
    """uint8 (C, H, W), one channel or three, to a picture."""
    array = pixels.cpu().numpy()
    return Image.fromarray(
        array[0] if len(array) == 1 else np.ascontiguousarray(array.transpose(1, 2, 0))
    )


def png(pixels: Tensor, text: dict[str, str]) -> bytes:
    """uint8 (C, H, W) to PNG, with `text` as its tEXt entries. The same input gives the same bytes."""
    info = PngInfo()
    for key, value in text.items():
        info.add_text(key, value)
    out = io.BytesIO()
    picture(pixels).save(out, "PNG", pnginfo=info)
    return out.getvalue()


def sheet(images: Tensor, columns: int | None = None) -> Image.Image:
    """uint8 (N, C, H, W) as a grid; of ceil(sqrt(N)) columns where nothing else is said."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    height, width = images.shape[2:]
    first = picture(images[0])
    canvas = Image.new(first.mode, (columns * width, math.ceil(len(images) / columns) * height))
    for i, image in enumerate(images):
        canvas.paste(picture(image), (i % columns * width, i // columns * height))
    return canvas
