"""PNGs: their pixels, and the recipe in their metadata."""

from __future__ import annotations

import io
import json

import numpy as np
from PIL import Image

from worker.results.png import METADATA_KEY, png_with_recipe

PIXELS = np.arange(35, dtype=np.uint8).reshape(5, 7)


def test_a_png_holds_the_pixels() -> None:
    with Image.open(io.BytesIO(png_with_recipe(Image.fromarray(PIXELS), {}))) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "L", (7, 5))
        assert np.array_equal(np.asarray(image), PIXELS)


def test_a_recipe_is_sorted_json_in_the_metadata() -> None:
    recipe = {"steps": 5, "seed": 2**53 - 1, "eta": 0.5}
    with Image.open(io.BytesIO(png_with_recipe(Image.fromarray(PIXELS), recipe))) as image:
        text = image.text[METADATA_KEY]
    assert text == '{"eta": 0.5, "seed": 9007199254740991, "steps": 5}'
    assert json.loads(text) == recipe


def test_the_same_image_and_recipe_give_the_same_bytes() -> None:
    first, same, other = (
        png_with_recipe(Image.fromarray(PIXELS.copy()), {"seed": seed}) for seed in (1, 1, 2)
    )
    assert first == same != other
