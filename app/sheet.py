"""A contact sheet: all images of a job in one PNG, row by row, so that memory holds one row of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from io import BytesIO

from PIL import Image

_GAP = 2  # pixels around every image
_LONGEST_SIDE = 2048  # pixels; 1024 images of 256 pixels would make a sheet of 200 MB


class ContactSheet:
    """`count` places, as square as can be. Images all have one size and mode, the first one's."""

    def __init__(self, count: int) -> None:
        self.columns = math.ceil(math.sqrt(count))
        self._rows = math.ceil(count / self.columns)
        self._sheet: Image.Image | None = None
        self._tile = (0, 0)

    def paste(self, first: int, pngs: Iterable[bytes | None]) -> None:
        """Places from `first` on; None leaves a blank."""
        for place, png in enumerate(pngs, first):
            if png:
                self._paste(place, Image.open(BytesIO(png)))

    def _paste(self, place: int, image: Image.Image) -> None:
        sheet = self._sheet = self._sheet or self._blank(image)
        row, column = divmod(place, self.columns)
        width, height = self._tile
        image.thumbnail(self._tile)
        sheet.paste(image, (_GAP + column * (width + _GAP), _GAP + row * (height + _GAP)))

    def _blank(self, image: Image.Image) -> Image.Image:
        room = _LONGEST_SIDE // self.columns - _GAP
        shrink = min(1.0, room / max(image.size))
        width, height = self._tile = (max(1, int(image.width * shrink)), max(1, int(image.height * shrink)))
        size = (_GAP + self.columns * (width + _GAP), _GAP + self._rows * (height + _GAP))
        return Image.new(image.mode, size, "white")

    def png(self) -> bytes | None:
        """None while nothing was pasted."""
        if self._sheet is None:
            return None
        out = BytesIO()
        self._sheet.save(out, "PNG")
        return out.getvalue()
