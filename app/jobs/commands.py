"""Changes jobs: submits, cancels and deletes them."""

from __future__ import annotations

import logging
import time
import uuid
from typing import cast

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import RedisError

from app.images.reader import ImageReader
from app.jobs.admission import Admission, Command
from app.jobs.defaults import recipe_with_defaults
from app.jobs.queries import JobQueries
from app.problems.problems import NotOnDisk, UnknownJob
from app.records.reader import buffer_read, check_job_id, owned_record, parse_read
from app.records.record import Record
from app.schemas.jobs import Job, JobRequest
from app.webhooks.check import check_webhook
from app.webhooks.target import Reach
from models.checkpoints.catalog import Catalog
from worker.jobs import transitions
from worker.jobs.keys import CHANGES, chains_key, job_key, open_key, owner_key, png_key, sha256_key
from worker.jobs.policy import RECORD_TTL_S, UNFINISHED_TTL_S
from worker.jobs.shard_queue import enqueue, withdraw

log = logging.getLogger(__name__)


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
            images: Removes the images of deleted jobs.
            admission: Decides whether a job is accepted.
            results_ttl_s: Seconds that images are kept after their job has ended.
            reach: The addresses that webhooks may go to; None where no webhooks are sent.
        """
        self._redis = redis
        self._catalog = catalog
        self._queries = queries
        self._images = images
        self._admission = admission
        self._results_ttl_s = results_ttl_s
        self._reach = reach
        # An owner's index lives as long as any record that it lists can.
        self._index_ttl_s = UNFINISHED_TTL_S + results_ttl_s + RECORD_TTL_S

    async def submit(self, request: JobRequest, owner: str, key: str | None = None) -> Job:
        """Post a job, whole or not at all, or find the job that the Idempotency-Key has posted.

        Args:
            request: What the client asks for.
            owner: Name of the key that asks.
            key: The request's Idempotency-Key, if it has one.

        Raises:
            InvalidRequest: the model, this service or an empty queue cannot serve the request.
            QuotaExceeded: the owner's open jobs would have too many image-steps left.
            QueueFull: all open jobs would have too many image-steps left.
            KeyReused: the Idempotency-Key is that of a job with another body.
            NotOnDisk: the job store did not confirm in time that the job is on its disk.
        """
        check_webhook(request.webhook, self._reach)
        record = self._new_record(request, owner)
        self._admission.check(record)
        commands = self._posting_commands(record)
        try:
            admitted = await self._admission.post(record, commands, request, key)
        except NotOnDisk:
            # With a key the client finds the job when it posts again; without one nobody would.
            if not key:
                await self._forget(record)
            raise
        if admitted.job != record.id:
            return await self._queries.get(admitted.job, owner)
        return admitted.stored.status(record.id, owner)

    async def cancel(self, job: str, owner: str) -> Job:
        """Cancel the job, and return it. A job that has ended stays as it is.

        Raises:
            UnknownJob: there is no such job, or it is another owner's.
        """
        record = await self._record(job, owner)
        keys = transitions.transition_keys(job, record.priority)
        # Not in the transaction: a script that fails there, as on a full server, would not keep
        # the next one from running.
        await transitions.CANCEL.call(self._redis, **keys)
        async with self._redis.pipeline(transaction=True) as pipe:
            _withdraw(pipe, record)
            buffer_read(pipe, job)
            *_, answer = await pipe.execute()
        [stored] = parse_read(answer)
        return stored.status(job, owner)

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
            pipe.zrem(owner_key(record.owner), job)
            pipe.publish(CHANGES, f"{job} deleted")
            _withdraw(pipe, record)
            # A full server cannot mark what runs, and need not: the job is gone.
            external, existed, *_ = await pipe.execute(raise_on_error=False)
        if not existed:
            raise UnknownJob(job)
        if external:
            await self._images.remove(job)

    def _new_record(self, request: JobRequest, owner: str) -> Record:
        # Whole microseconds, because a cursor holds the time as an integer of them.
        microseconds = time.time_ns() // 1000
        return Record(
            id=uuid.uuid4().hex,
            owner=owner,
            recipe=recipe_with_defaults(request, self._catalog),
            start=request.start,
            count=request.count,
            priority=request.priority,
            webhook=request.webhook,
            created_at=microseconds / 1e6,
        )

    def _posting_commands(self, record: Record) -> list[Command]:
        """Return the Redis commands that post a job."""
        pipe = self._redis.pipeline()
        pipe.hset(job_key(record.id), mapping=record.to_hash(self._results_ttl_s))
        pipe.expire(job_key(record.id), UNFINISHED_TTL_S)
        index = owner_key(record.owner)
        pipe.zadd(index, {record.id: record.created_at})
        pipe.zremrangebyscore(index, "-inf", record.created_at - self._index_ttl_s)
        pipe.expire(index, self._index_ttl_s)
        pipe.zadd(open_key(record.priority), {record.id: record.created_at})
        enqueue(record.shards, pipe)
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
            )

    async def _record(self, job: str, owner: str) -> Record:
        check_job_id(job)
        fields = cast("dict[bytes, bytes]", await self._redis.hgetall(job_key(job)))
        return owned_record(job, owner, fields)


def _withdraw(pipe: Pipeline, record: Record) -> None:
    """Buffer the commands that remove waiting shards and tell workers to drop running ones."""
    for shard in record.shards:
        withdraw(shard.id, pipe)
