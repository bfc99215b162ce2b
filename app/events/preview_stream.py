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

# Images that one stream may show.
MAX_IMAGES = 16
# A worker's answer lives as long.
_EVERY_S = 0.5


class PreviewStream:
    """The newest preview of each image, until the image is finished.

    A slow reader misses the previews in between.
    """

    def __init__(
        self, previews: PreviewReader, watched: WatchedJob, indices: Iterable[int]
    ) -> None:
        """Prepare the stream of one reader.

        Args:
            previews: Asks workers for previews.
            watched: The job whose events the reader gets.
            indices: The images that the reader has named.

        Raises:
            UnknownImage: The job has no image of one of these indices.
        """
        self._previews = previews
        self._watched = watched
        self._indices = sorted(set(indices))
        self._last: dict[int, bytes] = {}
        self._new: set[int] = set()
        if view := watched.view:
            for index in self._indices:
                if index not in view.record.indices:
                    raise UnknownImage(index, view.record.start, view.record.count)

    def take(self) -> bytes:
        """Take the events that have come since the last call.

        They have no id: a reader who comes back gets whatever previews there are by then.
        """
        new, self._new = self._new, set()
        return b"".join(self._event(index) for index in sorted(new & self._watched.running))

    async def run(self) -> None:
        """Fetch previews for ever.

        Each image has its own loop: one that no worker answers for holds up no other.
        """
        await asyncio.gather(*map(self._watch, self._indices))

    async def _watch(self, index: int) -> None:
        while True:
            if index in self._watched.running:
                await self._fetch(index)
            await asyncio.sleep(_EVERY_S)

    async def _fetch(self, index: int) -> None:
        try:
            png = await self._previews.newest(self._watched, index)
        except RedisError:
            # The stream stays open, and goes on when Redis is back.
            return
        if png and png != self._last.get(index):
            self._last[index] = png
            self._new.add(index)
            self._watched.wake_readers()

    def _event(self, index: int) -> bytes:
        event = PreviewEvent(index=index, png=b64encode(self._last[index]).decode())
        return format_sse_event(event=event.type, data_str=event.model_dump_json())
