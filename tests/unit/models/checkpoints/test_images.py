"""Images of pixels, and grids of them."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from models.checkpoints.images import sheet, to_image
from worker.results.png import png_with_recipe


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_an_image_holds_the_pixels(channels, mode):
    pixels = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8)
    image = to_image(pixels)
    assert (image.mode, image.size) == (mode, (7, 5))
    array = np.asarray(image)
    channels_first = array if channels == 1 else array.transpose(2, 0, 1)
    assert np.array_equal(channels_first, pixels.squeeze(0).numpy())


@pytest.mark.parametrize(
    ("count", "columns", "rows"),
    [(1, 1, 1), (2, 2, 1), (5, 3, 2), (9, 3, 3), (10, 4, 3), (64, 8, 8)],
)
def test_a_sheet_is_filled_row_by_row(count, columns, rows):
    levels = torch.arange(1, count + 1, dtype=torch.uint8)
    images = levels[:, None, None, None].expand(count, 3, 4, 6)
    made = np.asarray(sheet(images))
    assert made.shape == (rows * 4, columns * 6, 3)
    for place in range(columns * rows):
        tile = made[place // columns * 4 :, place % columns * 6 :][:4, :6]
        assert (tile == (place + 1 if place < count else 0)).all()


def test_an_image_that_is_a_view_of_a_batch_is_drawn_right():
    batch = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    assert np.array_equal(np.asarray(to_image(batch[1])), batch[1].permute(1, 2, 0).numpy())


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
def test_an_image_of_any_channels_survives_a_png(channels, mode):
    pixels = torch.randint(0, 256, (channels, 3, 5), dtype=torch.uint8)
    image = to_image(pixels)
    assert image.mode == mode
    with Image.open(io.BytesIO(png_with_recipe(image, {}))) as read:
        assert np.array_equal(np.asarray(read), np.asarray(image))
    assert sheet(torch.stack([pixels, pixels])).mode == mode
