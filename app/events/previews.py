"""What images look like so far, asked of whichever workers run them; for all who wait in one round trip."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.problems.problems import NoPreview, UnknownImage
from app.records.notifier import Notifier
from app.records.reader import Hash, as_hash, check_job_id, owned_record
from worker.jobs.domain import State
from worker.jobs.keys import job_key, preview_asked_key, preview_key, sha256_key
from worker.jobs.scripts import load

_WITHIN_S = 3.0  # a step takes a second at most, and a worker may have others to take first
_LOOK_EVERY_S = 0.05  # a tenth of a preview's life
_AT_ONCE = 64  # images a round trip
_READ = load("read_previews")


@dataclass(slots=True)
class _Look:
    """An image as one look found it."""

    fields: Hash
    finished: bool
    png: bytes | None

    @property
    def is_hopeless(self) -> bool:
        return self.fields.get(b"state") != State.RUNNING.value.encode()


@dataclass(slots=True)
class _Waiting:
    """For one image; however many clients."""

    last: _Look | None = None
    clients: int = 0
    error: RedisError | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)


class PreviewReader:
    """One task looks for all who wait, so that a thousand of them are as much work as sixteen round trips."""

    def __init__(self, redis: Redis, notifier: Notifier) -> None:
        self._redis, self._notifier = redis, notifier
        self._waiting: dict[tuple[str, int], _Waiting] = {}
        self._work: asyncio.Task[None] | None = None

    async def of(self, job: str, owner: str, index: int) -> bytes | None:
        """A PNG of x_0_hat as it stands; None for an image that is finished. Raises UnknownJob, UnknownImage or NoPreview."""
        check_job_id(job)
        (look,) = await self._look([(job, index)])
        record = owned_record(job, owner, look.fields)
        if index not in record.indices:
            raise UnknownImage(index, record.start, record.count)
        if not (look.finished or look.png or look.is_hopeless):
            look = await self._waited(job, index) or look
        record = owned_record(job, owner, look.fields)
        if look.finished:
            return None
        if look.png is None:
            raise NoPreview(index, record.state)
        return look.png

    async def newest(self, job: str, index: int) -> bytes | None:
        """As `of`, for whoever follows the job; None also where no worker answered in time."""
        look = await self._waited(job, index)
        return look.png if look else None

    async def _waited(self, job: str, index: int) -> _Look | None:
        """The look that ended the waiting, or the last one, if there was any."""
        with self._join((job, index)) as waiting:
            try:
                async with asyncio.timeout(_WITHIN_S):
                    await waiting.over.wait()
            except TimeoutError:
                pass
            if waiting.error:
                raise waiting.error
            return waiting.last

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
                    await self._look_again(images[first : first + _AT_ONCE])
                await asyncio.sleep(_LOOK_EVERY_S)
        except RedisError as error:
            for waiting in self._waiting.values():
                waiting.error = error
        finally:
            self._work = None
            for waiting in self._waiting.values():
                waiting.over.set()
            self._waiting = {}

    async def _look_again(self, images: Sequence[tuple[str, int]]) -> None:
        for image, look in zip(images, await self._look(images, ask=True), strict=True):
            if waiting := self._waiting.get(image):
                waiting.last = look
                if look.finished or look.png or look.is_hopeless:
                    waiting.over.set()
                    del self._waiting[image]

    async def _look(self, images: Sequence[tuple[str, int]], ask: bool = False) -> list[_Look]:
        """To ask is for those only of which it is known that their clients may."""
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
        return [_Look(as_hash(fields), sha256 is not None, png) for fields, sha256, png in answers]
