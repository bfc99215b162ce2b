"""PNGs with the recipe that makes them again in their metadata. Knows no torch."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

# The tEXt entry of a PNG that holds its recipe, as JSON.
METADATA_KEY = "ddpm"


def png_with_recipe(image: Image.Image, recipe: Mapping[str, Any]) -> bytes:
    """Encode an image as a PNG whose metadata holds the recipe, as JSON with sorted keys.

    The same input gives the same bytes.
    """
    info = PngInfo()
    info.add_text(METADATA_KEY, json.dumps(dict(recipe), sort_keys=True))
    out = io.BytesIO()
    image.save(out, "PNG", pnginfo=info)
    return out.getvalue()
