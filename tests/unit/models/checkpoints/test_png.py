"""PNGs: their pixels and metadata, and contact sheets."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from models.checkpoints.png import METADATA_KEY, png, png_with_recipe, sheet, to_image


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_a_png_holds_the_pixels_and_the_text(channels, mode):
    pixels = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8)
    text = {"ddpm": '{"seed": 9007199254740991, "model": "α"}', "Software": "ddpm"}
    with Image.open(io.BytesIO(png(pixels, text))) as image:
        assert (image.format, image.mode, image.size) == ("PNG", mode, (7, 5))
        assert image.text == text
        array = np.asarray(image)
    channels_first = array if channels == 1 else array.transpose(2, 0, 1)
    assert np.array_equal(channels_first, pixels.squeeze(0).numpy())


def test_a_recipe_is_sorted_json_in_the_metadata():
    pixels = torch.zeros(1, 2, 2, dtype=torch.uint8)
    with Image.open(io.BytesIO(png_with_recipe(pixels, {"steps": 5, "eta": 0.5}))) as image:
        text = image.text[METADATA_KEY]
    assert text == '{"eta": 0.5, "steps": 5}'
    assert json.loads(text) == {"steps": 5, "eta": 0.5}


def test_the_same_input_gives_the_same_bytes():
    pixels = torch.randint(0, 256, (3, 28, 28), dtype=torch.uint8)
    assert png(pixels, {"ddpm": "{}"}) == png(pixels.clone(), {"ddpm": "{}"})
    assert png(pixels, {"ddpm": "{}"}) != png(pixels, {"ddpm": "{ }"})


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
