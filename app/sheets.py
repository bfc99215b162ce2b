"""Contact sheets, a few at a time: one of 1,024 large images takes tens of megabytes, and seconds of a core."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from weakref import WeakValueDictionary

from app.errors import Expired
from app.pictures import Pictures
from app.record import Record
from app.schemas import Image
from app.sheet import ContactSheet

Gone = Callable[[], Coroutine[Any, Any, None]]  # returns when a client has closed the connection
_AT_ONCE = 2


class Sheets:
    """An owner's are drawn one after the other, so that whoever asks for many leaves room for others'."""

    def __init__(self, pictures: Pictures) -> None:
        self._pictures = pictures
        self._threads = ThreadPoolExecutor(_AT_ONCE, "sheets")
        self._drawing = asyncio.Semaphore(_AT_ONCE)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # by owner, while somebody has one

    async def draw(self, record: Record, images: Sequence[Image], gone: Gone) -> tuple[bytes, bool] | None:
        """A PNG, and whether all finished images are in it: one may have expired, or been harmed, meanwhile.

        None where the client has `gone` before it was done. Raises Expired or ResultsUnreachable.
        """
        leaving = asyncio.create_task(gone())
        turn = self._turns.setdefault(record.owner, asyncio.Lock())
        try:
            async with turn, self._drawing:
                return await self._drawn(record, images, leaving)
        finally:
            leaving.cancel()

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _drawn(self, record: Record, images: Sequence[Image], leaving: asyncio.Task[None]) -> tuple[bytes, bool] | None:
        loop, sheet, whole = asyncio.get_running_loop(), ContactSheet(record.count), True
        for first in range(0, len(images), sheet.columns):
            if leaving.done():
                return None
            hashes = {image.index: image.sha256 for image in images[first : first + sheet.columns]}
            pngs = await self._pictures.read(record, hashes)
            whole &= all(png or not digest for png, digest in zip(pngs, hashes.values(), strict=True))
            await loop.run_in_executor(self._threads, sheet.paste, first, pngs)
        png = await loop.run_in_executor(self._threads, sheet.png)
        if png is None:
            raise Expired
        return png, whole
