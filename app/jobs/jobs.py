"""Jobs in Redis: post, look, wait, list, fetch, cancel, delete."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import cast

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import RedisError

from app.events.preview_stream import PreviewStream
from app.events.previews import PreviewReader
from app.events.watcher import WatchedJob
from app.images.archive import Archive
from app.images.contact_sheets import ClientGone, ContactSheets
from app.images.reader import ImageReader
from app.jobs.admission import Admission, Command
from app.jobs.defaults import recipe_with_defaults
from app.problems.problems import (
    Expired,
    NotEnded,
    NotFinished,
    NotOnDisk,
    UnknownImage,
    UnknownJob,
)
from app.records.coalescing import JobReader, StateReader
from app.records.cursor import Cursor, newest_first
from app.records.notifier import Notifier, set_within
from app.records.reader import buffer_read, check_job_id, owned_record, parse_read
from app.records.record import Record
from app.schemas.jobs import Job, JobPage, JobRequest, JobSummary
from app.webhooks.check import check_webhook
from app.webhooks.target import Reach
from models.checkpoints.catalog import Catalog
from worker.jobs import scripts, transitions
from worker.jobs.domain import State
from worker.jobs.keys import CHANGES, chains_key, job_key, open_key, owner_key, png_key, sha256_key
from worker.jobs.policy import RECORD_TTL_S, UNFINISHED_TTL_S
from worker.jobs.shard_queue import enqueue, withdraw_keys

log = logging.getLogger(__name__)
_MAX_SCAN = 1000  # records read by one listing, however few match


class Jobs:
    """An owner sees its own jobs only: to it all others are unknown.

    Every method raises redis' own errors where Redis is away; app/problems/exception_handlers.py makes them 503 and 507.
    """

    def __init__(
        self,
        redis: Redis,
        catalog: Catalog,
        notifier: Notifier,
        pictures: ImageReader,
        sheets: ContactSheets,
        previews: PreviewReader,
        admission: Admission,
        results_ttl_s: int,
        reach: Reach | None,
    ) -> None:
        """`reach` is None where no webhooks are sent."""
        self._redis, self._catalog, self._notifier = redis, catalog, notifier
        self._pictures, self._sheets, self._admission, self._results_ttl_s = (
            pictures,
            sheets,
            admission,
            results_ttl_s,
        )
        self._reach = reach
        self._index_ttl_s = (
            UNFINISHED_TTL_S + results_ttl_s + RECORD_TTL_S
        )  # as long as a record can be there
        self._looks, self._states, self._previews = JobReader(redis), StateReader(redis), previews

    async def submit(self, request: JobRequest, owner: str, key: str | None = None) -> Job:
        """Post a job, whole or not at all, or find the one that was posted with this Idempotency-Key.

        Raises InvalidRequest for what the model cannot do, and what `Admission.post` raises.
        """
        check_webhook(request.webhook, self._reach)
        record = self._record(request, owner)
        self._admission.check(record)
        try:
            admitted = await self._admission.post(record, self._commands(record), request, key)
        except NotOnDisk:
            if not key:  # nobody else knows of it
                await self._forget(record)
            raise
        return (
            admitted.stored.status(record.id, owner)
            if admitted.job == record.id
            else await self.get(admitted.job, owner)
        )

    async def get(self, job: str, owner: str) -> Job:
        """In one round trip. Raises UnknownJob."""
        return (await self._seen(job, owner))[0]

    async def wait(self, job: str, owner: str, seconds: float, gone: ClientGone) -> bytes:
        """As JSON: at the next change of state, after `seconds`, or at once where the state is final or the client `gone`."""
        if seconds:
            await self._changed(job, owner, time.monotonic() + seconds, gone)
        return await self.status(job, owner)

    async def status(self, job: str, owner: str) -> bytes:
        """As `get`, and at once as JSON."""
        check_job_id(job)
        return (await self._looks.read(job)).status_json(job, owner)

    async def page(
        self, owner: str, state: State | None, limit: int, after: Cursor | None
    ) -> JobPage:
        found: list[JobSummary] = []
        scanned, last = 0, after
        async for batch in newest_first(self._redis, owner_key(owner), after):
            for place, summary in zip(batch, await self._summaries(batch), strict=True):
                if scanned == _MAX_SCAN:
                    return JobPage(jobs=found, next_cursor=str(last))
                if summary and state in (None, summary.state):
                    if len(found) == limit:  # only one more shows that there is a next page
                        return JobPage(jobs=found, next_cursor=str(last))
                    found.append(summary)
                scanned, last = scanned + 1, place
        return JobPage(jobs=found, next_cursor=None)

    async def image(self, job: str, owner: str, index: int) -> tuple[bytes, str]:
        """A PNG and its sha256. Raises UnknownJob, UnknownImage, NotFinished, Expired or ResultsUnreachable."""
        check_job_id(job)
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.hgetall(job_key(job))
            pipe.hget(sha256_key(job), str(index))
            pipe.hget(png_key(job), str(index))
            fields, digest, png = await pipe.execute()
        record = owned_record(job, owner, fields)
        if index not in record.indices:
            raise UnknownImage(index, record.start, record.count)
        if not digest:
            raise NotFinished(f"image {index} is not finished", record.state)
        png = png or (await self._pictures.stored(record, {index: digest.decode()}))[index]
        if not png:
            raise Expired
        return png, digest.decode()

    async def preview(self, job: str, owner: str, index: int) -> tuple[bytes, str]:
        """A PNG of x_0_hat and its sha256, or `image` where that is finished. Raises as `image` does, and NoPreview."""
        png = await self._previews.read(job, owner, index)
        return (png, sha256(png).hexdigest()) if png else await self.image(job, owner, index)

    def preview_feed(self, followed: WatchedJob, indices: Iterable[int]) -> PreviewStream:
        """For one reader of the job's events. Raises UnknownImage."""
        return PreviewStream(self._previews, followed, indices)

    async def grid(self, job: str, owner: str, gone: ClientGone) -> tuple[bytes, bool] | None:
        """The contact sheet as it stands, and whether it can never change; None for a client that has `gone`.

        Raises as `image` does.
        """
        now, record = await self._seen(job, owner)
        if not now.progress.images_done:
            raise NotFinished("no image is finished", now.state)
        drawn = await self._sheets.draw(record, now.images, gone)
        return drawn and (drawn[0], drawn[1] and now.state.final)

    async def archive(self, job: str, owner: str) -> Archive:
        """All finished images of a job that has ended. Raises UnknownJob, NotEnded or NotFinished."""
        now, record = await self._seen(job, owner)
        if not now.state.final:
            raise NotEnded(now.state)
        hashes = {image.index: image.sha256 for image in now.images if image.sha256}
        if not hashes:
            raise NotFinished("no image is finished", now.state)
        return Archive(self._pictures, record, hashes)

    async def cancel(self, job: str, owner: str) -> Job:
        """Where the job has ended already, nothing happens to it. Raises UnknownJob."""
        record = await self._find(job, owner)
        keys = transitions.transition_keys(job, record.priority)
        # Not in the transaction: a script that fails, as on a full server, does not keep the next one from running.
        await self._redis.eval(transitions.CANCEL, len(keys), *keys)
        async with self._redis.pipeline(transaction=True) as pipe:
            _withdraw(pipe, record)
            buffer_read(pipe, job)
            *_, looked = await pipe.execute()
        [it] = parse_read(looked)
        return it.status(job, owner)

    async def delete(self, job: str, owner: str) -> None:
        """Workers drop a job that is gone. Raises UnknownJob, also for the later of two deletions at once."""
        record = await self._find(job, owner)
        keys = transitions.transition_keys(job, record.priority)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.eval(transitions.DOOM, len(keys), *keys)
            pipe.delete(job_key(job))
            pipe.delete(sha256_key(job), png_key(job), chains_key(job))
            pipe.zrem(open_key(record.priority), job)
            pipe.zrem(owner_key(record.owner), job)
            pipe.publish(CHANGES, f"{job} deleted")
            _withdraw(pipe, record)
            # A full server cannot mark what runs, and need not: the job is gone.
            external, existed, *_ = await pipe.execute(raise_on_error=False)
        if not existed:
            raise UnknownJob(job)
        if external:
            await self._pictures.remove(job)

    async def _changed(self, job: str, owner: str, until: float, gone: ClientGone) -> None:
        """Looks at the state only: 150 who wait for 1024 images each would keep the API busy with nothing but building them."""
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

    def _record(self, request: JobRequest, owner: str) -> Record:
        return Record(
            id=uuid.uuid4().hex,
            owner=owner,
            recipe=recipe_with_defaults(request, self._catalog),
            start=request.start,
            count=request.count,
            priority=request.priority,
            webhook=request.webhook,
            created_at=time.time_ns()
            // 1000
            / 1e6,  # whole microseconds, so that a cursor can say it exactly
        )

    def _commands(self, record: Record) -> list[Command]:
        """Those that post a job."""
        pipe = self._redis.pipeline()
        pipe.hset(job_key(record.id), mapping=record.to_hash(self._results_ttl_s))
        pipe.expire(job_key(record.id), UNFINISHED_TTL_S)
        pipe.zadd(owner_key(record.owner), {record.id: record.created_at})
        pipe.zremrangebyscore(
            owner_key(record.owner), "-inf", record.created_at - self._index_ttl_s
        )
        pipe.expire(owner_key(record.owner), self._index_ttl_s)
        pipe.zadd(open_key(record.priority), {record.id: record.created_at})
        enqueue(record.shards, pipe)
        pipe.publish(CHANGES, f"{record.id} {record.state}")
        return [args for args, _ in pipe.command_stack]

    async def _forget(self, record: Record) -> None:
        try:
            await self.delete(record.id, record.owner)
        except (RedisError, UnknownJob) as error:
            log.warning(
                "job %s was refused but may be there, as the job store failed again: %s",
                record.id,
                error,
            )

    async def _seen(self, job: str, owner: str) -> tuple[Job, Record]:
        check_job_id(job)
        found = await self._looks.read(job)
        return found.status(job, owner), owned_record(job, owner, found.fields)

    async def _find(self, job: str, owner: str) -> Record:
        check_job_id(job)
        return owned_record(
            job, owner, cast("dict[bytes, bytes]", await self._redis.hgetall(job_key(job)))
        )

    async def _summaries(self, places: Sequence[Cursor]) -> list[JobSummary | None]:
        """None for a record that has expired."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for place in places:
                pipe.hgetall(job_key(place.job))
                pipe.hlen(sha256_key(place.job))
            answers = await pipe.execute()
        now, pairs = time.time(), zip(answers[::2], answers[1::2], strict=True)
        return [
            Record.from_hash(fields).summary(done, now) if fields else None
            for fields, done in pairs
        ]


def _withdraw(pipe: Pipeline, record: Record) -> None:
    """Take what waits out of the queue, and tell the workers of what runs."""
    for shard in record.shards:
        keys = withdraw_keys(shard)
        pipe.eval(scripts.WITHDRAW, len(keys), *keys, shard.id)
