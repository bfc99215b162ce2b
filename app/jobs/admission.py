"""Accepts jobs: once for each Idempotency-Key, within the bounds on open work, and durably."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from redis.asyncio import Redis

from app.jobs.durability import DurabilityCheck
from app.problems.problems import KeyReused, NotOnDisk, QueueFull, QuotaExceeded
from app.problems.validation import invalid
from app.records.reader import StoredJob, buffer_read, parse_read
from app.records.record import Record
from app.schemas.jobs import JobRequest
from worker.jobs.keys import LEFT, LOAD, idempotency_key, job_key
from worker.jobs.policy import UNFINISHED_TTL_S
from worker.jobs.scripts import load
from worker.jobs.shard_queue import queues_of
from worker.jobs.worker_registry import WorkerInfo

Part = str | bytes | int | float
Command = Sequence[Part]

# Bounds of the Retry-After that a refused client gets.
_LONGEST_WAIT_S = 3600
# Without a worker there is no rate to estimate from.
_NO_WORKER_WAIT_S = 60
_ADMIT = load("admit_job")


@dataclass(frozen=True, slots=True)
class Bounds:
    """Image-steps that may be left to run: of one owner's open jobs, and of all open jobs."""

    of_one: int
    of_all: int


@dataclass(frozen=True, slots=True)
class Admitted:
    """The job that the request stands for.

    `job` is its id. `stored` is what was read under the id of the new record. It holds the
    job unless an Idempotency-Key has found another one.
    """

    job: str
    stored: StoredJob


class Admission:
    """Decides whether a job is accepted, and posts it in the same step."""

    def __init__(self, redis: Redis, bounds: Bounds) -> None:
        """Take a client of the job store and the bounds.

        The timeout of `redis` must be longer than app.jobs.durability.WAIT_S: the server answers
        only when its disk has the job, or when that time is over.
        """
        self._redis = redis
        self._bounds = bounds
        self._durability = DurabilityCheck(redis)

    def check(self, record: Record) -> None:
        """Check that the job would fit an empty queue: if not, waiting would not help it.

        Raises:
            InvalidRequest: the job has more image-steps than a bound allows.
        """
        most = min(self._bounds.of_one, self._bounds.of_all)
        if record.image_steps > most:
            detail = (
                f"count={record.count} with {record.recipe.steps} steps each is "
                f"{record.image_steps} image-steps, more than the {most} that one key may have "
                "open; post fewer images or steps."
            )
            raise invalid("count", record.count, detail)

    async def post(
        self, record: Record, commands: Iterable[Command], request: JobRequest, key: str | None
    ) -> Admitted:
        """Post the job, or find the one that the same request and key have posted before.

        Args:
            record: The new job.
            commands: Redis commands that post it. All of them run, or none.
            request: What the client asks for; a key belongs to one request.
            key: The request's Idempotency-Key, if it has one.

        Raises:
            QuotaExceeded: the owner's open jobs would have too many image-steps left.
            QueueFull: all open jobs would have too many image-steps left.
            KeyReused: the key is that of a job with another request.
            NotOnDisk: the job is posted, but the job store may still lose it.
        """
        recipe = record.recipe
        queues = queues_of(record.shards)
        async with self._redis.pipeline(transaction=False) as pipe:
            _ADMIT.eval(
                pipe,
                record=job_key(record.id),
                left=LEFT,
                load=LOAD,
                idempotency=idempotency_key(record.owner, key) if key else None,
                id=record.id,
                owner=record.owner,
                image_steps=record.image_steps,
                most_of_one=self._bounds.of_one,
                most_of_all=self._bounds.of_all,
                about=f"{record.count} {recipe.steps} {recipe.model} {record.owner}",
                fingerprint=_fingerprint(request),
                idempotency_ttl_s=UNFINISHED_TTL_S,
                queue_count=len(queues),
                queues=queues,
                commands=_flat(commands),
            )
            self._durability.request(pipe)
            # Read here, not afterwards: a job that was accepted must not be answered with 503.
            buffer_read(pipe, record.id)
            posted, *on_disk, read = await pipe.execute(raise_on_error=False)
        for answer in (posted, read):
            if isinstance(answer, Exception):
                raise answer
        [stored] = parse_read(read)
        self._refuse(record, posted, stored.alive())
        if not await self._durability.confirmed(on_disk):
            raise NotOnDisk
        return Admitted(posted[1].decode(), stored)

    def _refuse(self, record: Record, posted: Sequence[Any], workers: Iterable[WorkerInfo]) -> None:
        """Raise the problem that the script's verdict stands for, if it refused the job."""
        verdict, _, own, of_all, owners = posted
        rate = sum(worker.image_steps_per_s for worker in workers)
        match verdict:
            case b"reused":
                raise KeyReused
            case b"quota":
                # Owners share the workers equally.
                wait_s = _wait_s(own + record.image_steps - self._bounds.of_one, rate / owners)
                raise QuotaExceeded(own, record.image_steps, self._bounds.of_one, wait_s)
            case b"full":
                wait_s = _wait_s(of_all + record.image_steps - self._bounds.of_all, rate)
                raise QueueFull(of_all, record.image_steps, self._bounds.of_all, wait_s)


def _flat(commands: Iterable[Command]) -> Iterator[Part]:
    """Yield the number of a command's parts, then its parts, for each command."""
    for command in commands:
        yield len(command)
        yield from command


def _wait_s(image_steps: int, rate: float) -> int:
    """Estimate the seconds until the workers have run so many image-steps, at `rate` a second."""
    return min(math.ceil(image_steps / rate), _LONGEST_WAIT_S) if rate > 0 else _NO_WORKER_WAIT_S


def _fingerprint(request: JobRequest) -> str:
    """Return a hash of what the request means, whatever its spelling.

    The order of its fields makes no difference, nor does a default that is written out.
    """
    return sha256(request.model_dump_json().encode()).hexdigest()
