"""Contact sheets, a few at a time: one of 1,024 large images takes tens of megabytes, and seconds of a core."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from weakref import WeakValueDictionary

from app.pictures import Pictures
from app.problems.problems import Expired, ResultsUnreachable
from app.records.record import Record
from app.schemas.jobs import Image
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
        self._failures = 0  # of the results store

    async def draw(self, record: Record, images: Sequence[Image], gone: Gone) -> tuple[bytes, bool] | None:
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

    async def _drawn(self, record: Record, images: Sequence[Image], leaving: asyncio.Task[None]) -> tuple[bytes, bool] | None:
        loop, sheet, whole = asyncio.get_running_loop(), ContactSheet(record.count), True
        for first in range(0, len(images), sheet.columns):
            if leaving.done():
                return None
            hashes = {image.index: image.sha256 for image in images[first : first + sheet.columns]}
            pngs = await self._read(record, hashes)
            whole &= all(png or not digest for png, digest in zip(pngs, hashes.values(), strict=True))
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
