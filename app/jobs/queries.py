"""Reads an owner's jobs: one job, a job that is about to change, and the whole list."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence

from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.images.contact_sheets import ClientGone
from app.operation.turns import Turns
from app.problems.problems import UnknownJob
from app.records.coalescing import JobReader, StateReader
from app.records.cursor import Cursor, newest_first
from app.records.notifier import Notifier, set_within
from app.records.queue_reader import QueueReader
from app.records.reader import check_job_id, is_owned, owned_record
from app.records.record import Record
from app.schemas.jobs import Job, JobPage, JobSummary
from worker.jobs.domain import State
from worker.jobs.keys import job_key, owner_key, sha256_key, state_key
from worker.jobs.scripts import load
from worker.logs import event

# Records that one listing reads, however few of them match.
_MAX_SCAN = 1000
# Records in a round trip: 4 ms of the event loop.
_AT_ONCE = 16
# Listings that are read at a time.
_LISTINGS = 4
_LIST = load("list_jobs")

log = logging.getLogger(__name__)


class JobQueries:
    """Reads jobs for their owner. To everybody else a job is unknown.

    Every method raises redis' own errors where Redis is away.
    app/problems/exception_handlers.py turns them into 503 and 507.
    """

    def __init__(self, redis: Redis, notifier: Notifier, queue: QueueReader) -> None:
        self._redis = redis
        self._queue = queue
        self._notifier = notifier
        self._jobs = JobReader(redis, queue)
        self._states = StateReader(redis)
        self._turns = Turns(_LISTINGS)

    async def get(self, job: str, owner: str) -> Job:
        """Return the job as it stands, in one round trip.

        Raises:
            UnknownJob: there is no such job, or it is another owner's.
        """
        seen, _ = await self.get_with_record(job, owner)
        return seen

    async def get_with_record(self, job: str, owner: str) -> tuple[Job, Record]:
        """Return what `get` returns, and the record that it was made from.

        Raises:
            UnknownJob: there is no such job, or it is another owner's.
        """
        check_job_id(job)
        stored = await self._jobs.read(job)
        return stored.status(job, owner, self._queue.latest), owned_record(
            job, owner, stored.fields
        )

    async def record(self, job: str, owner: str) -> Record:
        """Return the job's record.

        Raises:
            UnknownJob: there is no such job, or it is another owner's.
        """
        check_job_id(job)
        return owned_record(job, owner, (await self._jobs.read(job)).fields)

    async def status(self, job: str, owner: str) -> bytes:
        """Return what `get` returns, but as JSON, which takes less time.

        Raises:
            UnknownJob: there is no such job, or it is another owner's.
        """
        check_job_id(job)
        stored = await self._jobs.read(job)
        return stored.status_json(job, owner, self._queue.latest)

    async def wait(self, job: str, owner: str, seconds: float, gone: ClientGone) -> bytes:
        """Wait for the next change of the job's state, then return its status as JSON.

        A job that has ended is returned at once.

        Args:
            job: Id of the job.
            owner: Name of the key that asks.
            seconds: Longest wait.
            gone: Returns when the client has closed its connection, which ends the wait.

        Raises:
            UnknownJob: there is no such job, or it is another owner's.
        """
        if seconds:
            await self._state_changed(job, owner, time.monotonic() + seconds, gone)
        return await self.status(job, owner)

    async def page(
        self, owner: str, state: State | None, limit: int, after: Cursor | None
    ) -> tuple[JobPage, int]:
        """Return the next jobs of an owner, newest first, and how many records were read.

        Each state has a list of its own, so that no more is read than is returned. Jobs that
        versions without such lists have posted are looked for among all, and put into them. Such
        a page can hold fewer jobs than `limit` and still have a next one, because one call reads
        a bounded number of records.

        Owners take turns, and one reads one listing at a time.

        Args:
            owner: Name of the key that asks.
            state: Only jobs in this state; None for all.
            limit: Most jobs on the page.
            after: Where the page before ended; None for the first page.
        """
        async with self._turns.turn(owner):
            return await self._page(owner, state, limit, after)

    async def _page(
        self, owner: str, state: State | None, limit: int, after: Cursor | None
    ) -> tuple[JobPage, int]:
        is_listed = state is not None and await self._has_lists_of_states(owner)
        key = state_key(owner, state) if state and is_listed else owner_key(owner)
        matching: list[JobSummary] = []
        misplaced: list[str] = []
        scanned = 0
        more = False
        last = after
        async for cursor, summary in self._jobs_behind(key, after, min(limit + 1, _AT_ONCE)):
            # Only one more match shows that there is a next page.
            matches = summary is not None and state in (None, summary.state)
            if scanned == _MAX_SCAN or (matches and len(matching) == limit):
                more = True
                break
            if summary and matches:
                matching.append(summary)
            if summary is None or (state and not (is_listed and matches)):
                misplaced.append(cursor.job)
            scanned += 1
            last = cursor
        if misplaced:
            await self._list(owner, misplaced)
        return JobPage(jobs=matching, next_cursor=str(last) if more else None), scanned

    async def _has_lists_of_states(self, owner: str) -> bool:
        """Say whether every job of the owner is in the list of a state."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.zcard(owner_key(owner))
            for state in State:
                pipe.zcard(state_key(owner, state))
            all_of_them, *by_state = await pipe.execute()
        return bool(sum(by_state) >= all_of_them)

    async def _jobs_behind(
        self, key: str, after: Cursor | None, at_once: int
    ) -> AsyncIterator[tuple[Cursor, JobSummary | None]]:
        """Read a list's jobs, newest first; None stands for a record that is gone."""
        async for batch in newest_first(self._redis, key, after):
            for first in range(0, len(batch), at_once):
                some = batch[first : first + at_once]
                for cursor, summary in zip(some, await self._summaries(some), strict=True):
                    yield cursor, summary
                # Other requests are answered in between.
                await asyncio.sleep(0)

    async def _list(self, owner: str, jobs: Sequence[str]) -> None:
        try:
            await _LIST.call(self._redis, owner=owner, jobs=jobs)
        except RedisError:
            # The page is read. A full server puts the jobs into their lists another time.
            log.info(
                "%d jobs of %s stay in a wrong list for now",
                len(jobs),
                owner,
                extra=event("jobs.misfiled", owner=owner),
            )

    async def _state_changed(self, job: str, owner: str, until: float, gone: ClientGone) -> None:
        """Return at the next change of state, or when the client has gone, or at `until`.

        `until` is a time of the monotonic clock. Only the state is read meanwhile. Building the
        whole answer at every change would keep the API busy with nothing else: 150 clients may
        wait for jobs of 1024 images each.
        """
        with self._notifier.listen(job) as changed:
            leaving = asyncio.create_task(gone())
            leaving.add_done_callback(lambda _: changed.set())
            try:
                before = now = await self._state(job, owner)
                while now is before and not (now.final or self._notifier.closed or leaving.done()):
                    if not await set_within(changed, until - time.monotonic()):
                        return
                    changed.clear()
                    now = await self._state(job, owner)
            finally:
                leaving.cancel()

    async def _state(self, job: str, owner: str) -> State:
        check_job_id(job)
        state, owned_by = await self._states.read(job)
        if state is None or not is_owned(owned_by, owner):
            raise UnknownJob(job)
        return State(state.decode())

    async def _summaries(self, cursors: Sequence[Cursor]) -> list[JobSummary | None]:
        """Return a summary for each job, None for one whose record has expired."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for cursor in cursors:
                pipe.hgetall(job_key(cursor.job))
                pipe.hlen(sha256_key(cursor.job))
            answers = await pipe.execute()
        now = time.time()
        records = answers[::2]
        images_done = answers[1::2]
        return [
            Record.from_hash(fields).summary(done, now) if fields else None
            for fields, done in zip(records, images_done, strict=True)
        ]
