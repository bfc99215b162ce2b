"""Reads an owner's jobs: one job, a job that is about to change, and the whole list."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from redis.asyncio import Redis

from app.images.contact_sheets import ClientGone
from app.problems.problems import UnknownJob
from app.records.coalescing import JobReader, StateReader
from app.records.cursor import Cursor, newest_first
from app.records.notifier import Notifier, set_within
from app.records.reader import check_job_id, owned_record
from app.records.record import Record
from app.schemas.jobs import Job, JobPage, JobSummary
from worker.jobs.domain import State
from worker.jobs.keys import job_key, owner_key, sha256_key

# Records that one listing reads, however few of them match.
_MAX_SCAN = 1000


class JobQueries:
    """Reads jobs for their owner. To everybody else a job is unknown.

    Every method raises redis' own errors where Redis is away.
    app/problems/exception_handlers.py turns them into 503 and 507.
    """

    def __init__(self, redis: Redis, notifier: Notifier) -> None:
        self._redis = redis
        self._notifier = notifier
        self._jobs = JobReader(redis)
        self._states = StateReader(redis)

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
        return stored.status(job, owner), owned_record(job, owner, stored.fields)

    async def status(self, job: str, owner: str) -> bytes:
        """Return what `get` returns, but as JSON, which takes less time.

        Raises:
            UnknownJob: there is no such job, or it is another owner's.
        """
        check_job_id(job)
        stored = await self._jobs.read(job)
        return stored.status_json(job, owner)

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
    ) -> JobPage:
        """Return the next jobs of an owner, newest first.

        A page can hold fewer jobs than `limit` and still have a next one,
        because one call reads a bounded number of records.

        Args:
            owner: Name of the key that asks.
            state: Only jobs in this state; None for all.
            limit: Most jobs on the page.
            after: Where the page before ended; None for the first page.
        """
        matching: list[JobSummary] = []
        scanned = 0
        last = after
        async for batch in newest_first(self._redis, owner_key(owner), after):
            summaries = await self._summaries(batch)
            for cursor, summary in zip(batch, summaries, strict=True):
                if scanned == _MAX_SCAN:
                    return JobPage(jobs=matching, next_cursor=str(last))
                if summary and state in (None, summary.state):
                    # Only one more match shows that there is a next page.
                    if len(matching) == limit:
                        return JobPage(jobs=matching, next_cursor=str(last))
                    matching.append(summary)
                scanned += 1
                last = cursor
        return JobPage(jobs=matching, next_cursor=None)

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
        if state is None or owned_by != owner.encode():
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
