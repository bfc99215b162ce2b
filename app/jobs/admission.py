"""Whether a job is taken: once for one Idempotency-Key, within the bounds on open work, and when it is on disk."""

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
from worker.jobs.worker_registry import WorkerInfo

Part = str | bytes | int | float
Command = Sequence[Part]

_LONGEST_WAIT_S = 3600
_NO_WORKER_WAIT_S = 60  # without a worker nobody can say when there will be room
_ADMIT = load("admit_job")


@dataclass(frozen=True, slots=True)
class Bounds:
    """Image-steps that may be left to run, of one owner's jobs and of all."""

    of_one: int
    of_all: int


@dataclass(frozen=True, slots=True)
class Admitted:
    """The job that is there now, and what was found of the one that was to be posted."""

    job: str
    stored: StoredJob


class Admission:
    """`redis` has a timeout that is longer than the server's wait for its disk."""

    def __init__(self, redis: Redis, bounds: Bounds) -> None:
        self._redis, self._bounds, self._disk = redis, bounds, DurabilityCheck(redis)

    def check(self, record: Record) -> None:
        """Raises InvalidRequest for a job that would not fit an empty queue: waiting would not help it."""
        most = min(self._bounds.of_one, self._bounds.of_all)
        if record.image_steps > most:
            text = f"count={record.count} with {record.recipe.steps} steps each is {record.image_steps} image-steps, more than the "
            raise invalid(
                "count",
                record.count,
                f"{text}{most} that one key may have open; post fewer images or steps.",
            )

    async def post(
        self, record: Record, commands: Iterable[Command], request: JobRequest, key: str | None
    ) -> Admitted:
        """Run the commands that post the job, all or none. `key` is the request's Idempotency-Key.

        Raises QueueFull, QuotaExceeded, KeyReused; NotOnDisk for a job that is posted and may yet be lost.
        """
        recipe = record.recipe
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
                commands=_flat(commands),
            )
            self._disk.ask(pipe)
            buffer_read(
                pipe, record.id
            )  # here, not afterwards: a job that was accepted must not be answered with 503
            posted, *asked, looked = await pipe.execute(raise_on_error=False)
        if failed := next(
            (answer for answer in (posted, looked) if isinstance(answer, Exception)), None
        ):
            raise failed
        [it] = parse_read(looked)
        self._refuse(record, posted, it.alive())
        if not await self._disk.has(asked):
            raise NotOnDisk
        return Admitted(posted[1].decode(), it)

    def _refuse(self, record: Record, posted: Sequence[Any], workers: Iterable[WorkerInfo]) -> None:
        verdict, _, own, of_all, owners = posted
        rate = sum(worker.image_steps_per_s for worker in workers)
        match verdict:
            case b"reused":
                raise KeyReused
            case b"quota":  # owners share the workers equally
                wait_s = _wait_s(own + record.image_steps - self._bounds.of_one, rate / owners)
                raise QuotaExceeded(own, record.image_steps, self._bounds.of_one, wait_s)
            case b"full":
                wait_s = _wait_s(of_all + record.image_steps - self._bounds.of_all, rate)
                raise QueueFull(of_all, record.image_steps, self._bounds.of_all, wait_s)


def _flat(commands: Iterable[Command]) -> Iterator[Part]:
    for command in commands:
        yield len(command)
        yield from command


def _wait_s(image_steps: int, rate: float) -> int:
    return min(math.ceil(image_steps / rate), _LONGEST_WAIT_S) if rate > 0 else _NO_WORKER_WAIT_S


def _fingerprint(request: JobRequest) -> str:
    """Of what was asked for, not of its spelling: another order of the fields, or a default that is written out, is the same."""
    return sha256(request.model_dump_json().encode()).hexdigest()
