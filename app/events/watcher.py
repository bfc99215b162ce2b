"""Looks at the jobs whose events are read: all of them in one round trip, however many read them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cached_property

from fastapi.sse import format_sse_event
from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.events.stream import JobView, ReaderPosition
from app.operation.background import background
from app.problems.problems import UnknownJob
from app.records.coalescing import Coalescer
from app.records.notifier import Notifier, set_within
from app.records.reader import Hash, as_hash, check_job_id
from app.records.record import Record
from worker.jobs.domain import State
from worker.jobs.keys import job_key, sha256_key
from worker.jobs.scripts import load

log = logging.getLogger(__name__)
_LOOK_EVERY_S = (
    0.05  # and workers report as often, so that what is told of a running job is at most 0.1 s old
)
_SHARE = 0.2  # of the time, at most: of more than fits in, each job is looked at less often, and polls are answered meanwhile
_LONGEST_PAUSE_S = 2.0
_HEARTBEAT_S = 15.0  # proxies close what is silent for long; a minute is common
_HEARTBEAT = format_sse_event(comment="still here")
_RETRY = format_sse_event(retry=1000)
_READ = load("read_watched_jobs")


class RecordRead:
    """What one look found: the job's hash, empty for a job that is gone, and the hashes of its images."""

    def __init__(self, fields: Hash, hashes: Hash) -> None:
        self.fields, self.hashes = fields, hashes

    @cached_property
    def view(self) -> JobView | None:
        """Made when a reader has time for it: of slow readers' looks, most go by."""
        return JobView(Record.from_hash(self.fields), self.hashes) if self.fields else None


class WatchedJob:
    """A job and the last look at it, for all who read its events."""

    def __init__(self, job: str, changed: asyncio.Event) -> None:
        self.job, self.changed = job, changed
        self.readers = 0
        self.closed = False
        self.look: RecordRead | None = None
        self._news = asyncio.Event()  # set, and replaced, when a look finds something else

    @property
    def hashes(self) -> Hash:
        return self.look.hashes if self.look else {}

    @property
    def owner(self) -> bytes | None:
        """None for a job that is gone."""
        return self.look.fields.get(b"owner") if self.look else None

    @property
    def view(self) -> JobView | None:
        """None for a job that is gone."""
        return self.look.view if self.look else None

    @property
    def running(self) -> frozenset[int]:
        """Indices of the images that a worker has taken and not finished."""
        view = self.view
        return view.running if view else frozenset()

    async def events(
        self, told: ReaderPosition, previews: Callable[[], bytes]
    ) -> AsyncIterator[bytes]:
        """Until the job has ended or is gone, or the process is to stop.

        A reader that is slow misses looks, and nothing that they had to say. `previews` says what is new since it was asked last.
        """
        yield _RETRY
        while (view := self.view) and not self.closed:
            news = self._news  # taken now: another look may come while the last one is sent
            text, told = view.news(told)
            if text := text + previews():
                yield text
            if told.everything:
                return
            if not await set_within(news, _HEARTBEAT_S):
                yield _HEARTBEAT

    @property
    def is_due(self) -> bool:
        runs = (
            self.look is not None and self.look.fields.get(b"state") == State.RUNNING.value.encode()
        )
        return runs or self.changed.is_set()

    def heed(self, look: RecordRead) -> None:
        before, self.look = self.look, look
        if before is None or (before.fields, before.hashes) != (look.fields, look.hashes):
            self.wake()

    def close(self) -> None:
        self.closed = True
        self.wake()

    def wake(self) -> None:
        """Let all readers see whether there is news for them."""
        self._news.set()
        self._news = asyncio.Event()


class EventWatcher(Coalescer[WatchedJob, None]):
    """One task a process, which does nothing while nobody reads. While Redis is away, readers wait for it to come back."""

    at_once = 256  # jobs a round trip; Redis does nothing else meanwhile

    def __init__(self, redis: Redis, notifier: Notifier) -> None:
        super().__init__(redis)
        self._notifier = notifier
        self._followed: dict[str, WatchedJob] = {}
        self._somebody = asyncio.Event()

    def __len__(self) -> int:
        """Jobs whose events are read."""
        return len(self._followed)

    @asynccontextmanager
    async def follow(self, job: str, owner: str) -> AsyncIterator[WatchedJob]:
        """The owner's job, as it stands. Raises UnknownJob, and what redis raises where the first look fails."""
        check_job_id(job)
        followed = self._join(job)
        try:
            await self.at(
                followed
            )  # though others follow it: their last look may be from before what this reader knows
            if followed.owner != owner.encode():
                raise UnknownJob(job)
            yield followed
        finally:
            self._leave(followed)

    def close(self) -> None:
        """Ends all streams; their readers come back, to another process or to the next one here."""
        for followed in self._followed.values():
            followed.close()

    def running(self) -> AbstractAsyncContextManager[None]:
        return background(self._run())

    def _join(self, job: str) -> WatchedJob:
        if job not in self._followed:
            self._followed[job] = WatchedJob(job, self._notifier.join(job))
        followed = self._followed[job]
        followed.readers += 1
        self._somebody.set()
        return followed

    def _leave(self, followed: WatchedJob) -> None:
        followed.readers -= 1
        if not followed.readers:
            self._notifier.leave(followed.job, followed.changed)
            del self._followed[followed.job]
        if not self._followed:
            self._somebody.clear()

    async def _run(self) -> None:
        pause_s = _LOOK_EVERY_S
        while True:
            await self._somebody.wait()
            began = time.monotonic()
            try:
                await self._look_at(
                    [followed for followed in self._followed.values() if followed.is_due]
                )
                await asyncio.sleep(0)  # behind the readers that were woken
                pause_s = min(
                    max(_LOOK_EVERY_S, (time.monotonic() - began) * (1 / _SHARE - 1)),
                    _LONGEST_PAUSE_S,
                )
            except RedisError as error:
                for followed in self._followed.values():
                    followed.changed.set()  # for all that is known
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                log.warning(
                    "cannot look at the jobs whose events are read (%s); again in %.2f s",
                    error,
                    pause_s,
                )
            await asyncio.sleep(pause_s)

    async def _look_at(self, due: Sequence[WatchedJob]) -> None:
        if looks := [self._ask(followed) for followed in due]:
            await asyncio.wait(looks)
        for look in looks:
            look.result()

    async def _read(self, keys: Sequence[WatchedJob]) -> Sequence[None]:
        for followed in keys:
            followed.changed.clear()  # before the look: a change after it is another one
        answers = await _READ.call(
            self._redis,
            jobs=[(job_key(followed.job), sha256_key(followed.job)) for followed in keys],
            known=[len(followed.hashes) for followed in keys],
        )
        for followed, (record, images) in zip(keys, answers, strict=True):
            followed.heed(
                RecordRead(as_hash(record), followed.hashes if images is None else as_hash(images))
            )
        return [None] * len(keys)
