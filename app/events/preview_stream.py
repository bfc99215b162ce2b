"""Previews as events of a job's stream, for a reader who names images."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Iterable

from fastapi.sse import format_sse_event
from redis.exceptions import RedisError

from app.events.previews import PreviewReader
from app.events.watcher import WatchedJob
from app.problems.problems import UnknownImage
from app.schemas.events import PreviewEvent

MAX_IMAGES = 16  # of one stream
_EVERY_S = 0.5  # a worker's answer lives as long


class PreviewStream:
    """The newest preview of each image, until it is finished. A reader that is slow misses those that came between."""

    def __init__(
        self, previews: PreviewReader, followed: WatchedJob, indices: Iterable[int]
    ) -> None:
        """Raises UnknownImage."""
        self._previews, self._followed = previews, followed
        self._indices = sorted(set(indices))
        self._last: dict[int, bytes] = {}
        self._new: set[int] = set()
        if view := followed.view:
            for index in self._indices:
                if index not in view.record.indices:
                    raise UnknownImage(index, view.record.start, view.record.count)

    def take(self) -> bytes:
        """Events of what has come since the last call. They have no id: who comes back is shown what there is by then."""
        new, self._new = self._new, set()
        return b"".join(self._event(index) for index in sorted(new & self._followed.running))

    async def run(self) -> None:
        """For ever. Each image by itself: one that no worker answers for holds up no other."""
        await asyncio.gather(*map(self._watch, self._indices))

    async def _watch(self, index: int) -> None:
        while True:
            if index in self._followed.running:
                await self._look(index)
            await asyncio.sleep(_EVERY_S)

    async def _look(self, index: int) -> None:
        try:
            png = await self._previews.newest(self._followed.job, index)
        except RedisError:  # the stream stays open, and goes on when Redis is back
            return
        if png and png != self._last.get(index):
            self._last[index] = png
            self._new.add(index)
            self._followed.wake()

    def _event(self, index: int) -> bytes:
        event = PreviewEvent(index=index, png=b64encode(self._last[index]).decode())
        return format_sse_event(event="preview", data_str=event.model_dump_json())
