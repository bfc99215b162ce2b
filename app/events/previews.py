"""Previews of running images, asked of the workers that run them.

All clients that wait for previews share the round trips to Redis.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.events.watcher import WatchedJob
from app.problems.problems import NoPreview, UnknownImage
from app.records.notifier import Notifier
from app.records.reader import Hash, as_hash, check_job_id, owned_record
from worker.jobs.domain import State
from worker.jobs.keys import job_key, preview_asked_key, preview_key, sha256_key
from worker.jobs.scripts import load

# A step takes a second at most, and a worker may have to take others first.
WITHIN_S = 3.0
# A tenth of a preview's life.
_POLL_EVERY_S = 0.05
# A worker is asked for 1024 images at most (worker/process/previews.py).
_SHARE = 128
# Images a round trip.
_AT_ONCE = 64
_READ = load("read_previews")


@dataclass(slots=True)
class _ImageRead:
    """An image as one read found it.

    Attributes:
        fields: The hash of the image's job; empty for a job that is gone.
        finished: Whether the image has its final bytes.
        png: The preview, where there is one.
    """

    fields: Hash
    finished: bool
    png: bytes | None

    @property
    def is_settled(self) -> bool:
        """Say whether waiting is over: there is a preview, or there will be none."""
        job_runs = self.fields.get(b"state") == State.RUNNING.value.encode()
        return self.finished or bool(self.png) or not job_runs


@dataclass(slots=True)
class _Waiting:
    """One image that is waited for, by however many clients."""

    last: _ImageRead | None = None
    clients: int = 0
    error: RedisError | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)


class PreviewReader:
    """Waits for previews. One task polls for all clients: 1,000 images are 16 round trips a poll.

    It is no `Coalescer`, which answers each question once. Here one task alone asks, about every
    image again and again, until there is a preview or nobody waits any more.
    """

    def __init__(
        self,
        redis: Redis,
        notifier: Notifier,
        within_s: float = WITHIN_S,
        share: int = _SHARE,
    ) -> None:
        """Prepare, without touching Redis.

        Args:
            redis: Where the jobs are, and the previews.
            notifier: Says when nobody is to wait any more.
            within_s: Seconds that a client waits for a preview.
            share: Previews of one owner that workers are asked for at a time; others wait.
        """
        self.within_s = within_s
        self._redis = redis
        self._notifier = notifier
        self._share = share
        self._shares: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._waiting: dict[tuple[str, int], _Waiting] = {}
        self._work: asyncio.Task[None] | None = None

    async def read(self, job: str, owner: str, index: int) -> bytes | None:
        """Give a PNG of x_0_hat as it stands; None for an image that is finished.

        Raises:
            UnknownJob: The job is not there, or is another owner's.
            UnknownImage: The job has no image of this index.
            NoPreview: The job does not run, or no worker answered in time.
            redis.RedisError: Redis did not answer.
        """
        check_job_id(job)
        (image,) = await self._read_images([(job, index)])
        record = owned_record(job, owner, image.fields)
        if index not in record.indices:
            raise UnknownImage(index, record.start, record.count)
        if not image.is_settled:
            image = await self._wait(job, record.owner, index) or image
        record = owned_record(job, owner, image.fields)
        if image.finished:
            return None
        if image.png is None:
            raise NoPreview(index, record.state)
        return image.png

    async def newest(self, watched: WatchedJob, index: int) -> bytes | None:
        """Give what `read` does to a client that follows the job already.

        It is None also where no worker answered in time.

        Raises:
            redis.RedisError: Redis did not answer.
        """
        owner = (watched.owner or b"").decode()
        image = await self._wait(watched.job, owner, index)
        return image.png if image else None

    async def _wait(self, job: str, owner: str, index: int) -> _ImageRead | None:
        """Give the read that ended the waiting, or the last one, if there was any."""
        # It is there for as long as somebody waits for an image of the owner's.
        share = self._shares.setdefault(owner, asyncio.Semaphore(self._share))
        last = None
        try:
            async with asyncio.timeout(self.within_s), share:
                with self._join((job, index)) as waiting:
                    try:
                        await waiting.over.wait()
                    finally:
                        last = waiting.last
                    if waiting.error:
                        raise waiting.error
        except TimeoutError:
            pass
        return last

    @contextmanager
    def _join(self, image: tuple[str, int]) -> Iterator[_Waiting]:
        waiting = self._waiting.setdefault(image, _Waiting())
        waiting.clients += 1
        if self._work is None:
            self._work = asyncio.create_task(self._run())
        try:
            yield waiting
        finally:
            waiting.clients -= 1
            if not waiting.clients and self._waiting.get(image) is waiting:
                del self._waiting[image]

    async def _run(self) -> None:
        try:
            while self._waiting and not self._notifier.closed:
                images = list(self._waiting)
                for first in range(0, len(images), _AT_ONCE):
                    await self._poll(images[first : first + _AT_ONCE])
                await asyncio.sleep(_POLL_EVERY_S)
        except RedisError as error:
            for waiting in self._waiting.values():
                waiting.error = error
        finally:
            self._work = None
            for waiting in self._waiting.values():
                waiting.over.set()
            self._waiting = {}

    async def _poll(self, images: Sequence[tuple[str, int]]) -> None:
        reads = await self._read_images(images, ask=True)
        for image, read in zip(images, reads, strict=True):
            if waiting := self._waiting.get(image):
                waiting.last = read
                if read.is_settled:
                    waiting.over.set()
                    del self._waiting[image]

    async def _read_images(
        self, images: Sequence[tuple[str, int]], ask: bool = False
    ) -> list[_ImageRead]:
        """Read images, and with `ask` request previews that are not there from the workers.

        Ask only for clients that are known to own the job.
        """
        answers = await _READ.call(
            self._redis,
            images=[
                (
                    job_key(job),
                    sha256_key(job),
                    preview_key(job, index),
                    preview_asked_key(job, index),
                )
                for job, index in images
            ],
            ask=int(ask),
            names=images,
        )
        return [
            _ImageRead(as_hash(fields), sha256 is not None, png) for fields, sha256, png in answers
        ]
