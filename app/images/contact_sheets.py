"""Contact sheets: all images of a job in one PNG, drawn a few at a time.

One of 1,024 large images takes tens of megabytes, and seconds of a core. It is drawn row by row, so that memory holds one row.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any
from weakref import WeakValueDictionary

from PIL import Image

from app.images.reader import ImageReader
from app.problems.problems import Expired, ResultsUnreachable
from app.records.record import Record
from app.schemas.jobs import Image as JobImage

ClientGone = Callable[
    [], Coroutine[Any, Any, None]
]  # returns when a client has closed the connection
_AT_ONCE = 2
_GAP = 2  # pixels around every image
_LONGEST_SIDE = 2048  # pixels; 1024 images of 256 pixels would make a sheet of 200 MB


class ContactSheets:
    """An owner's are drawn one after the other, so that whoever asks for many leaves room for others'."""

    def __init__(self, pictures: ImageReader) -> None:
        self._pictures = pictures
        self._threads = ThreadPoolExecutor(_AT_ONCE, "sheets")
        self._drawing = asyncio.Semaphore(_AT_ONCE)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = (
            WeakValueDictionary()
        )  # by owner, while somebody has one
        self._failures = 0  # of the results store

    async def draw(
        self, record: Record, images: Sequence[JobImage], gone: ClientGone
    ) -> tuple[bytes, bool] | None:
        """A PNG, and whether all finished images are in it: one may have expired, or been harmed, meanwhile.

        None where the client has `gone` before it was done. Raises Expired; ResultsUnreachable also where the store that holds
        this job's images failed another's sheet while this one waited: of one that hangs each would learn 3 s after the other.
        """
        leaving = asyncio.create_task(gone())
        turn = self._turns.setdefault(record.owner, asyncio.Lock())
        failures = self._failures
        try:
            async with turn, self._drawing:
                if failures != self._failures and record.in_store(time.time()):
                    raise ResultsUnreachable
                return await self._drawn(record, images, leaving)
        finally:
            leaving.cancel()

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _drawn(
        self, record: Record, images: Sequence[JobImage], leaving: asyncio.Task[None]
    ) -> tuple[bytes, bool] | None:
        loop, sheet, whole = asyncio.get_running_loop(), ContactSheet(record.count), True
        for first in range(0, len(images), sheet.columns):
            if leaving.done():
                return None
            hashes = {image.index: image.sha256 for image in images[first : first + sheet.columns]}
            pngs = await self._read(record, hashes)
            whole &= all(
                png or not digest for png, digest in zip(pngs, hashes.values(), strict=True)
            )
            await loop.run_in_executor(self._threads, sheet.paste, first, pngs)
        png = await loop.run_in_executor(self._threads, sheet.png)
        if png is None:
            raise Expired
        return png, whole

    async def _read(self, record: Record, hashes: Mapping[int, str | None]) -> list[bytes | None]:
        try:
            return await self._pictures.read(record, hashes)
        except ResultsUnreachable:
            self._failures += 1
            raise


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
        width, height = self._tile = (
            max(1, int(image.width * shrink)),
            max(1, int(image.height * shrink)),
        )
        size = (_GAP + self.columns * (width + _GAP), _GAP + self._rows * (height + _GAP))
        return Image.new(image.mode, size, "white")

    def png(self) -> bytes | None:
        """None while nothing was pasted."""
        if self._sheet is None:
            return None
        out = BytesIO()
        self._sheet.save(out, "PNG")
        return out.getvalue()
