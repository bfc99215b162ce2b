"""Contact sheets: all images of a job in one PNG, drawn a few at a time.

A sheet of 1,024 large images takes tens of megabytes, and seconds of a core. It is drawn row by
row, so that memory holds the PNGs of one row.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

from PIL import Image

from app.images.reader import ImageReader
from app.operation.turns import Turns
from app.problems.problems import Expired, ResultsUnreachable
from app.records.record import Record
from app.schemas.jobs import Image as JobImage

# Returns when a client has closed its connection.
ClientGone = Callable[[], Coroutine[Any, Any, None]]
_AT_ONCE = 2
# Pixels around every image.
_GAP = 2
# Pixels. 1024 images of 256 pixels would otherwise make a sheet of 200 MB.
_LONGEST_SIDE = 2048


class ContactSheets:
    """Draws contact sheets, two at a time.

    The sheets of one owner are drawn one after the other, so that an owner who asks for many
    leaves room for the others.
    """

    def __init__(self, images: ImageReader) -> None:
        self._images = images
        self._threads = ThreadPoolExecutor(_AT_ONCE, "sheets")
        self._turns = Turns(_AT_ONCE)
        # How often the results store has failed.
        self._failures = 0

    async def draw(
        self, record: Record, images: Sequence[JobImage], gone: ClientGone
    ) -> tuple[bytes, bool] | None:
        """Draw a sheet.

        If the results store fails one sheet, it fails all sheets that wait for it. With a store
        that hangs, each would otherwise wait 3 s more than the one before it.

        Args:
            record: The job.
            images: All images of the job.
            gone: Returns when the client has closed its connection.

        Returns:
            The PNG, and whether all finished images are on it: one may have expired, or been
            harmed, meanwhile. None where the client had gone before the sheet was done.

        Raises:
            Expired: No image is left.
            ResultsUnreachable: The results store did not answer.
            redis.RedisError: Redis did not answer.
        """
        leaving = asyncio.create_task(gone())
        failures = self._failures
        try:
            async with self._turns.turn(record.owner):
                if failures != self._failures and record.in_store(time.time()):
                    raise ResultsUnreachable
                return await self._drawn(record, images, leaving)
        finally:
            leaving.cancel()

    def close(self) -> None:
        """End the threads, without waiting for a sheet that is being drawn."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _drawn(
        self, record: Record, images: Sequence[JobImage], leaving: asyncio.Task[None]
    ) -> tuple[bytes, bool] | None:
        loop = asyncio.get_running_loop()
        sheet = ContactSheet(record.count)
        whole = True
        for first in range(0, len(images), sheet.columns):
            if leaving.done():
                return None
            digests = {image.index: image.sha256 for image in images[first : first + sheet.columns]}
            pngs = await self._read(record, digests)
            pairs = zip(pngs, digests.values(), strict=True)
            whole &= all(png or not digest for png, digest in pairs)
            await loop.run_in_executor(self._threads, sheet.paste, first, pngs)
        png = await loop.run_in_executor(self._threads, sheet.png)
        if png is None:
            raise Expired
        return png, whole

    async def _read(self, record: Record, digests: Mapping[int, str | None]) -> list[bytes | None]:
        try:
            return await self._images.read(record, digests)
        except ResultsUnreachable:
            self._failures += 1
            raise


class ContactSheet:
    """A sheet of `count` places, as square as it can be.

    All images have one size and mode, those of the first.
    """

    def __init__(self, count: int) -> None:
        self.columns = math.ceil(math.sqrt(count))
        self._rows = math.ceil(count / self.columns)
        self._sheet: Image.Image | None = None
        self._tile = (0, 0)

    def paste(self, first: int, pngs: Iterable[bytes | None]) -> None:
        """Fill places from `first` on; None leaves a blank."""
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
        """Give the sheet as a PNG; None while nothing was pasted."""
        if self._sheet is None:
            return None
        out = BytesIO()
        self._sheet.save(out, "PNG")
        return out.getvalue()
