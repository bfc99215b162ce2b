"""Changes jobs: submits, cancels and deletes them."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import RedisError

from app.images.reader import ImageReader
from app.jobs.admission import (
    Admission,
    Admitted,
    Command,
    fingerprint_of_refused,
    fingerprints_of,
)
from app.jobs.bounds import NO_OWN_BOUNDS, OwnBounds
from app.jobs.defaults import recipe_with_defaults
from app.jobs.queries import JobQueries
from app.operation.origin import ORIGIN
from app.problems.problems import InvalidRequest, NotOnDisk, UnknownJob
from app.records.queue_reader import QueueReader
from app.records.reader import buffer_read, check_job_id, owned_record, parse_read
from app.records.record import Record
from app.schemas.jobs import Job, JobRequest, WebhookStatus
from app.webhooks.check import check_webhook
from app.webhooks.target import Reach
from models.checkpoints.catalog import Catalog
from worker.jobs import transitions
from worker.jobs.domain import State, shard_count
from worker.jobs.keys import (
    CHANGES,
    KEPT_BY_OWNER,
    LOAD,
    chains_key,
    job_key,
    open_key,
    owner_key,
    png_key,
    sha256_key,
    state_key,
)
from worker.jobs.policy import UNFINISHED_TTL_S
from worker.jobs.shard_queue import enqueue, withdraw
from worker.logs import event

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Usage:
    """What an owner's jobs take of each bound: how much there is, and how much there may be."""

    open_image_steps: tuple[int, int]
    open_jobs: tuple[int, int]
    kept_jobs: tuple[int, int]
    kept_bytes: tuple[int, int]


class JobCommands:
    """Changes jobs for their owner. To everybody else a job is unknown.

    Every method raises redis' own errors where Redis is away.
    app/problems/exception_handlers.py turns them into 503 and 507.
    """

    def __init__(
        self,
        redis: Redis,
        catalog: Catalog,
        queries: JobQueries,
        queue: QueueReader,
        images: ImageReader,
        admission: Admission,
        results_ttl_s: int,
        reach: Reach | None,
    ) -> None:
        """Take the parts that jobs are posted and removed with.

        Args:
            redis: The job store.
            catalog: The models that jobs may name.
            queries: Finds the job of an Idempotency-Key that is sent again.
            queue: Knows all open work, which a job's place is in.
            images: Removes the images of deleted jobs.
            admission: Decides whether a job is accepted.
            results_ttl_s: Seconds that images are kept after their job has ended.
            reach: The addresses that webhooks may go to; None where no webhooks are sent.
        """
        self._redis = redis
        self._catalog = catalog
        self._queries = queries
        self._queue = queue
        self._images = images
        self._admission = admission
        self._results_ttl_s = results_ttl_s
        self._reach = reach

    async def submit(
        self,
        request: JobRequest,
        owner: str,
        key: str | None = None,
        own: OwnBounds = NO_OWN_BOUNDS,
    ) -> tuple[str, bytes]:
        """Post a job, whole or not at all, or find the job that the Idempotency-Key has posted.

        Args:
            request: What the client asks for.
            owner: Name of the key that asks.
            key: The request's Idempotency-Key, if it has one.
            own: The owner's own bounds.

        Returns:
            The job's id, and its status as JSON: of a new job as it was posted.

        Raises:
            InvalidRequest: the model, this service or an empty queue cannot serve the request.
            QuotaExceeded: the owner's open jobs would have too many image-steps left.
            TooManyJobs: the owner has too many jobs, open or kept.
            TooManyBytes: the owner's images would take too many bytes.
            QueueFull: all open jobs would have too many image-steps left.
            KeyReused: the Idempotency-Key is that of a job with another body.
            NotOnDisk: the job store did not confirm in time that the job is on its disk.
        """
        try:
            record = self._checked_record(request, owner, own)
        except InvalidRequest:
            # Bounds and models may have changed since the job was posted.
            posted = await self._find(owner, fingerprints_of(request), key) if key else None
            if posted is None:
                raise
            return posted
        admitted = await self._admit(record, request, key, own)
        if admitted.job != record.id:
            try:
                return admitted.job, await self._queries.status(admitted.job, owner)
            except UnknownJob:
                # It was deleted at this moment, and its key with it.
                admitted = await self._admit(record, request, key, own)
                if admitted.job != record.id:
                    return admitted.job, await self._queries.status(admitted.job, owner)
        _log_submitted(record)
        work = record.as_posted()
        self._queue.latest.add(work)
        place = self._queue.latest.place(work, admitted.position)
        return record.id, record.json({}, False, place, record.created_at)

    async def find_refused(
        self, body: Mapping[str, Any], owner: str, key: str
    ) -> tuple[str, bytes] | None:
        """Find the job that a body has posted which the schema refuses by now.

        Args:
            body: What was sent.
            owner: Name of the key that asks.
            key: The request's Idempotency-Key.

        Returns:
            What `submit` returned, or None for a key that has posted nothing.

        Raises:
            KeyReused: the Idempotency-Key is that of a job with another body.
            NotOnDisk: the job store may still lose the job.
        """
        return await self._find(owner, [fingerprint_of_refused(body)], key)

    async def _find(
        self, owner: str, fingerprints: Sequence[str], key: str
    ) -> tuple[str, bytes] | None:
        posted = await self._admission.find(owner, fingerprints, key)
        return None if posted is None else (posted, await self._queries.status(posted, owner))

    async def usage(self, owner: str, own: OwnBounds) -> Usage:
        """Return what the owner's jobs take of each bound on them.

        Args:
            owner: Name of the key that asks.
            own: The owner's own bounds.
        """
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.hget(LOAD, owner)
            pipe.zcard(state_key(owner, State.QUEUED))
            pipe.zcard(state_key(owner, State.RUNNING))
            pipe.zcard(owner_key(owner))
            pipe.hget(KEPT_BY_OWNER, owner)
            image_steps, queued, running, kept, kept_bytes = await pipe.execute()
        bounds = self._admission.bounds.with_own(own)
        return Usage(
            open_image_steps=(int(image_steps or 0), bounds.of_one),
            open_jobs=(queued + running, bounds.jobs_open),
            kept_jobs=(kept, bounds.jobs_kept),
            kept_bytes=(int(kept_bytes or 0), bounds.bytes_kept),
        )

    async def cancel(self, job: str, owner: str) -> Job:
        """Cancel the job, and return it. A job that has ended stays as it is.

        Raises:
            UnknownJob: there is no such job, or it is another owner's.
        """
        record = await self._record(job, owner)
        keys = transitions.transition_keys(job, record.priority)
        # Not in the transaction: a script that fails there, as on a full server, would not keep
        # the next one from running.
        state = await transitions.CANCEL.call(self._redis, **keys)
        state = state.decode() if state else "gone"
        log.info("job %s: cancel", job, extra=event("job.cancelled", job=job, state=state))
        async with self._redis.pipeline(transaction=True) as pipe:
            _withdraw(pipe, record)
            buffer_read(pipe, job)
            *_, answer = await pipe.execute()
        [stored] = parse_read(answer)
        return stored.status(job, owner, self._queue.latest)

    async def delete(self, job: str, owner: str) -> None:
        """Remove the job and its images. Workers drop a job that is gone.

        Raises:
            UnknownJob: there is no such job, or it is another owner's. The later of two
                deletions at once gets this error too.
        """
        record = await self._record(job, owner)
        keys = transitions.transition_keys(job, record.priority)
        async with self._redis.pipeline(transaction=True) as pipe:
            transitions.PREPARE_DELETION.eval(pipe, **keys)
            pipe.delete(job_key(job))
            pipe.delete(sha256_key(job), png_key(job), chains_key(job))
            pipe.zrem(open_key(record.priority), job)
            pipe.publish(CHANGES, f"{job} deleted")
            _withdraw(pipe, record)
            # A full server cannot mark what runs, and need not: the job is gone.
            external, existed, *_ = await pipe.execute(raise_on_error=False)
        if not existed:
            raise UnknownJob(job)
        log.info("job %s was deleted", job, extra=event("job.deleted", job=job))
        if external:
            await self._images.remove(job)

    def _checked_record(self, request: JobRequest, owner: str, own: OwnBounds) -> Record:
        """Return a new record of what is asked for.

        Raises:
            InvalidRequest: the model, this service or an empty queue cannot serve the request.
        """
        check_webhook(request.webhook, self._reach)
        record = self._new_record(request, owner)
        self._admission.check(record, own)
        return record

    async def _admit(
        self, record: Record, request: JobRequest, key: str | None, own: OwnBounds
    ) -> Admitted:
        commands = self._posting_commands(record)
        try:
            return await self._admission.post(
                record, commands, request, key, self._results_ttl_s, own
            )
        except NotOnDisk:
            # With a key the client finds the job when it posts again; without one nobody would.
            if not key:
                await self._forget(record)
            raise

    def _new_record(self, request: JobRequest, owner: str) -> Record:
        # Whole microseconds, because a cursor holds the time as an integer of them.
        microseconds = time.time_ns() // 1000
        recipe = recipe_with_defaults(request, self._catalog)
        waiting = WebhookStatus(state="waiting", attempts=0, said=None)
        return Record(
            id=uuid.uuid4().hex,
            owner=owner,
            recipe=recipe,
            start=request.start,
            count=request.count,
            priority=request.priority,
            webhook=request.webhook,
            webhook_status=waiting if request.webhook else None,
            done=(None,) * shard_count(request.count),
            created_at=microseconds / 1e6,
            cost_per_image_step=self._catalog[recipe.model].cost_per_image_step
            * (recipe.passes // recipe.steps),
        )

    def _posting_commands(self, record: Record) -> list[Command]:
        """Return the Redis commands that post a job."""
        origin = ORIGIN.get()
        pipe = self._redis.pipeline()
        pipe.hset(job_key(record.id), mapping=record.to_hash(self._results_ttl_s, origin))
        pipe.expire(job_key(record.id), UNFINISHED_TTL_S)
        pipe.zadd(open_key(record.priority), {record.id: record.created_at})
        enqueue(record.shards, pipe, origin)
        pipe.publish(CHANGES, f"{record.id} {record.state}")
        return [args for args, _ in pipe.command_stack]

    async def _forget(self, record: Record) -> None:
        """Remove a job that was posted and refused. The log tells if that fails."""
        try:
            await self.delete(record.id, record.owner)
        except (RedisError, UnknownJob) as error:
            log.warning(
                "job %s was refused but may be there, as the job store failed again: %s",
                record.id,
                error,
                extra=event("job.undecided", job=record.id),
            )

    async def _record(self, job: str, owner: str) -> Record:
        check_job_id(job)
        fields = cast("dict[bytes, bytes]", await self._redis.hgetall(job_key(job)))
        return owned_record(job, owner, fields)


def _log_submitted(record: Record) -> None:
    recipe = record.recipe
    log.info(
        "job %s was submitted: %d images of %d steps by %s",
        record.id,
        record.count,
        recipe.steps,
        recipe.model,
        extra=event(
            "job.submitted",
            job=record.id,
            model=recipe.model,
            priority=record.priority.value,
            images=record.count,
            image_steps=record.image_steps,
        ),
    )


def _withdraw(pipe: Pipeline, record: Record) -> None:
    """Buffer the commands that remove waiting shards and tell workers to drop running ones."""
    for shard in record.shards:
        withdraw(shard.id, pipe)
