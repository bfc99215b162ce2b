"""Reads the jobs whose events are followed: many in one round trip, whatever their readers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cached_property
from random import randint

from fastapi.sse import format_sse_event
from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.events.stream import JobView, ReaderPosition
from app.operation.background import background
from app.problems.problems import UnknownJob
from app.records.coalescing import Coalescer
from app.records.notifier import Notifier, set_within
from app.records.reader import Hash, as_hash, check_job_id, is_owned
from app.records.record import Record
from worker.jobs.backoff import Backoff
from worker.jobs.domain import State
from worker.jobs.keys import job_key, sha256_key
from worker.jobs.scripts import load
from worker.logs import event

log = logging.getLogger(__name__)
# Workers report as often, so that what readers get of a running job is at most 0.1 s old.
POLL_EVERY_S = 0.05
# The share of the time that reading may take. Where it would take more, each job is read less
# often, and other requests are answered meanwhile.
_SHARE = 0.2
_LONGEST_PAUSE_S = 2.0
_BACKOFF = Backoff(first_s=POLL_EVERY_S, longest_s=_LONGEST_PAUSE_S)
# Proxies close what is silent for long; a minute is common.
HEARTBEAT_S = 15.0
_HEARTBEAT = format_sse_event(comment="still here")
# Readers whom a restart cuts off come back within three seconds, and not all at once.
_RETRY_MS = (1000, 3000)
_READ = load("read_watched_jobs")


class JobHashes:
    """The two Redis hashes of a job as one read found them.

    `fields` is the job itself, empty for a job that is gone.
    `digests` has the sha256 of each finished image, by index.
    """

    def __init__(self, fields: Hash, digests: Hash) -> None:
        self.fields = fields
        self.digests = digests

    @cached_property
    def view(self) -> JobView | None:
        """A view of the job, None for a job that is gone.

        It is made when a reader has time for it: slow readers skip most reads.
        """
        return JobView(Record.from_hash(self.fields), self.digests) if self.fields else None


class WatchedJob:
    """A job as it was read last, for all who read its events.

    `changed` is set where the job may have changed since.
    """

    def __init__(self, job: str, changed: asyncio.Event, heartbeat_s: float = HEARTBEAT_S) -> None:
        self.job = job
        self.changed = changed
        self.readers = 0
        self.closed = False
        self._heartbeat_s = heartbeat_s
        self._hashes: JobHashes | None = None
        # Set, and replaced, when there is something new for the readers.
        self._news = asyncio.Event()

    @property
    def digests(self) -> Hash:
        """The sha256 of each image that is known to be finished, by index."""
        return self._hashes.digests if self._hashes else {}

    @property
    def owner(self) -> bytes | None:
        """The owner's name; None for a job that is gone."""
        return self._hashes.fields.get(b"owner") if self._hashes else None

    @property
    def view(self) -> JobView | None:
        """The job as it was read last; None for a job that is gone."""
        return self._hashes.view if self._hashes else None

    @property
    def running(self) -> frozenset[int]:
        """Indices of the images that a worker has taken and not finished."""
        view = self.view
        return view.running if view else frozenset()

    async def events(
        self, position: ReaderPosition, previews: Callable[[], bytes]
    ) -> AsyncIterator[bytes]:
        """Stream events until the job has ended or is gone, or the process is to stop.

        A slow reader skips reads of the job, and loses nothing that was in them.

        Args:
            position: How much the reader has been sent before.
            previews: Gives the events of previews that have come since its last call.
        """
        # Ahead of the first event: a block of its own would be an empty event to some clients.
        first = b"retry: %d\n" % randint(*_RETRY_MS)
        while (view := self.view) and not self.closed:
            # Taken now: another read may come while the last one is sent.
            news = self._news
            text, position = view.events_after(position)
            may_have_more = bool(text)
            if text := text + previews():
                yield first + text
                first = b""
            if position.at_end:
                return
            if may_have_more:
                # Other requests are answered in between.
                await asyncio.sleep(0)
                continue
            if not await set_within(news, self._heartbeat_s):
                yield _HEARTBEAT

    @property
    def is_due(self) -> bool:
        """Say whether the job is to be read again: it runs, or may have changed."""
        state = self._hashes.fields.get(b"state") if self._hashes else None
        return state == State.RUNNING.value.encode() or self.changed.is_set()

    def update(self, hashes: JobHashes) -> None:
        """Take what a read found, and wake the readers where it differs from the last one."""
        before, self._hashes = self._hashes, hashes
        if before is None or (before.fields, before.digests) != (hashes.fields, hashes.digests):
            self.wake_readers()

    def close(self) -> None:
        """End the streams of all readers."""
        self.closed = True
        self.wake_readers()

    def wake_readers(self) -> None:
        """Let all readers see whether there is something new for them."""
        self._news.set()
        self._news = asyncio.Event()


class EventWatcher(Coalescer[WatchedJob, None]):
    """Reads the jobs that are followed, in one task a process, which rests while nobody reads.

    While Redis is away, readers wait for it to come back.
    """

    # Jobs a round trip; Redis does nothing else meanwhile.
    at_once = 256

    def __init__(
        self,
        redis: Redis,
        notifier: Notifier,
        poll_every_s: float = POLL_EVERY_S,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        """Prepare, without touching Redis.

        Args:
            redis: Where the jobs are.
            notifier: Says which jobs have changed.
            poll_every_s: Seconds between two reads of a running job, more where reads take long.
            heartbeat_s: Seconds of silence after which a stream sends a comment.
        """
        super().__init__(redis)
        self._notifier = notifier
        self.poll_every_s = poll_every_s
        self.heartbeat_s = heartbeat_s
        self._watched: dict[str, WatchedJob] = {}
        self._somebody = asyncio.Event()

    def __len__(self) -> int:
        """Count the jobs whose events are read."""
        return len(self._watched)

    @asynccontextmanager
    async def follow(self, job: str, owner: str) -> AsyncIterator[WatchedJob]:
        """Watch the owner's job while the block runs, beginning with how it is now.

        Raises:
            UnknownJob: The job is not there, or is another owner's.
            redis.RedisError: The first read failed.
        """
        check_job_id(job)
        watched = self._join(job)
        try:
            # Others may follow the job, but this reader may know more than their last read.
            await self.read(watched)
            if not is_owned(watched.owner, owner):
                raise UnknownJob(job)
            yield watched
        finally:
            self._leave(watched)

    def close(self) -> None:
        """End all streams. Their readers come back, to another process or to the next one here."""
        for watched in self._watched.values():
            watched.close()

    def running(self) -> AbstractAsyncContextManager[None]:
        """Read the jobs that are followed while the block runs."""
        return background(self._run())

    def _join(self, job: str) -> WatchedJob:
        if job not in self._watched:
            changed = self._notifier.join(job)
            self._watched[job] = WatchedJob(job, changed, self.heartbeat_s)
        watched = self._watched[job]
        watched.readers += 1
        self._somebody.set()
        return watched

    def _leave(self, watched: WatchedJob) -> None:
        watched.readers -= 1
        if not watched.readers:
            self._notifier.leave(watched.job, watched.changed)
            del self._watched[watched.job]
        if not self._watched:
            self._somebody.clear()

    async def _run(self) -> None:
        pause_s = self.poll_every_s
        while True:
            await self._somebody.wait()
            began = time.monotonic()
            try:
                await self.read_all([job for job in self._watched.values() if job.is_due])
                # Readers that were woken go first, and their time counts.
                await asyncio.sleep(0)
                took_s = time.monotonic() - began
                pause_s = min(max(self.poll_every_s, took_s * (1 / _SHARE - 1)), _LONGEST_PAUSE_S)
            except RedisError as error:
                for watched in self._watched.values():
                    # It may have, for all that is known.
                    watched.changed.set()
                pause_s = _BACKOFF.longer_s(pause_s)
                log.warning(
                    "cannot look at the jobs whose events are read (%s); again in %.2f s",
                    error,
                    pause_s,
                    extra=event("events.unreadable"),
                )
            await asyncio.sleep(pause_s)

    async def read_many(self, keys: Sequence[WatchedJob]) -> Sequence[None]:
        """Update these jobs with what Redis has of them."""
        for watched in keys:
            # Before the read, so that a change after it counts as another one.
            watched.changed.clear()
        answers = await _READ.call(
            self._redis,
            jobs=[(job_key(watched.job), sha256_key(watched.job)) for watched in keys],
            known=[len(watched.digests) for watched in keys],
        )
        for watched, (fields, images) in zip(keys, answers, strict=True):
            digests = watched.digests if images is None else as_hash(images)
            watched.update(JobHashes(as_hash(fields), digests))
        return [None] * len(keys)
