"""Accepts jobs: once for each Idempotency-Key, within the bounds on open work, and durably."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError
from redis.asyncio.client import Pipeline

from app.jobs.bounds import NO_OWN_BOUNDS, Bounds, OwnBounds
from app.jobs.group_commit import GroupCommit
from app.problems.problems import (
    KeyReused,
    NotOnDisk,
    QueueFull,
    QuotaExceeded,
    TooManyBytes,
    TooManyJobs,
)
from app.problems.validation import invalid
from app.records.queue_reader import QueueReader
from app.records.record import Record
from app.schemas.jobs import JobRequest
from models.checkpoints.catalog import Card
from worker.jobs.domain import Priority
from worker.jobs.keys import LEFT, LOAD, idempotency_key, job_key, open_key
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
# Until a job of the owner has ended, or was deleted.
_JOBS_WAIT_S = 60
# The fields of a request when fingerprints were made of all fields, with their defaults.
_FIRST_FIELDS = (
    "model",
    "count",
    "seed",
    "start",
    "steps",
    "sampler",
    "eta",
    "variance",
    "priority",
    "webhook",
)
_ADMIT = load("admit_job")
_FIND = load("find_posted")


@dataclass(frozen=True, slots=True)
class Admitted:
    """The job that the request stands for.

    Attributes:
        job: Its id, which is another than the record's if an Idempotency-Key has found it.
        position: Jobs before the new one.
    """

    job: str
    position: int


class Admission:
    """Decides whether a job is accepted, and posts it in the same step."""

    def __init__(
        self, commits: GroupCommit, queue: QueueReader, bounds: Bounds, cards: Mapping[str, Card]
    ) -> None:
        """Take the parts that decide.

        Args:
            commits: Writes jobs.
            queue: Knows who works.
            bounds: How much work may be open.
            cards: The models' cards by name.
        """
        self._commits = commits
        self._queue = queue
        self._bounds = bounds
        self._cards = cards

    @property
    def bounds(self) -> Bounds:
        """The bounds of owners that have none of their own."""
        return self._bounds

    def check(self, record: Record, own: OwnBounds = NO_OWN_BOUNDS) -> None:
        """Check that the job would fit an empty queue: if not, waiting would not help it.

        Args:
            record: The new job.
            own: The owner's own bounds.

        Raises:
            InvalidRequest: the job counts as more image-steps or bytes than a bound allows.
        """
        bounds = self._bounds.with_own(own)
        most = min(bounds.of_one, bounds.of_all)
        if record.cost > most:
            detail = (
                f"count={record.count} with {record.recipe.steps} steps each is "
                f"{_counted(record)} image-steps, more than the {most} that one key may have "
                "open; post fewer images or steps."
            )
            raise invalid("count", record.count, detail)
        if self._bytes(record) > bounds.bytes_kept:
            detail = (
                f"count={record.count} images take up to {self._bytes(record)} bytes, more than "
                f"the {bounds.bytes_kept} that one key may have kept; post fewer images."
            )
            raise invalid("count", record.count, detail)

    def _bytes(self, record: Record) -> int:
        """Return what the job's images take at most."""
        return record.count * self._cards[record.recipe.model].png_bytes_at_most

    async def find(self, owner: str, fingerprints: Sequence[str], key: str) -> str | None:
        """Return the job that the same request and key have posted before, if there is one.

        Args:
            owner: Name of the key that asks.
            fingerprints: What `fingerprints_of` or `fingerprint_of_refused` says of the request.
            key: Its Idempotency-Key.

        Raises:
            KeyReused: the key is that of a job with another request.
            NotOnDisk: the job is posted, but the job store may still lose it.
        """
        found, is_on_disk = await self._commits.run(
            lambda pipe: _FIND.eval(
                pipe, idempotency=idempotency_key(owner, key), fingerprints=fingerprints
            )
        )
        if not found:
            return None
        if found[0] == b"reused":
            raise KeyReused
        if not is_on_disk:
            raise NotOnDisk
        return cast("bytes", found[1]).decode()

    async def post(
        self,
        record: Record,
        commands: Iterable[Command],
        request: JobRequest,
        key: str | None,
        results_ttl_s: int,
        own: OwnBounds = NO_OWN_BOUNDS,
    ) -> Admitted:
        """Post the job, or find the one that the same request and key have posted before.

        Args:
            record: The new job.
            commands: Redis commands that post it. All of them run, or none.
            request: What the client asks for; a key belongs to one request.
            key: The request's Idempotency-Key, if it has one.
            results_ttl_s: Seconds that the job's images are kept.
            own: The owner's own bounds.

        Raises:
            QuotaExceeded: the owner's open jobs would have too many image-steps left.
            TooManyJobs: the owner has too many jobs, open or kept.
            TooManyBytes: the owner's images would take too many bytes.
            QueueFull: all open jobs would have too many image-steps left.
            KeyReused: the key is that of a job with another request.
            NotOnDisk: the job is posted, but the job store may still lose it.
        """
        bounds = self._bounds.with_own(own)
        posted, is_on_disk = await self._commits.run(
            partial(
                self._buffer,
                record,
                commands,
                fingerprints_of(request),
                key,
                results_ttl_s,
                bounds,
            )
        )
        self._refuse(record, bounds, posted)
        if not is_on_disk:
            raise NotOnDisk
        return Admitted(posted[1].decode(), posted[5])

    def _buffer(
        self,
        record: Record,
        commands: Iterable[Command],
        fingerprints: Sequence[str],
        key: str | None,
        results_ttl_s: int,
        bounds: Bounds,
        pipe: Pipeline,
    ) -> None:
        recipe = record.recipe
        queues = queues_of(record.shards)
        _ADMIT.eval(
            pipe,
            record=job_key(record.id),
            left=LEFT,
            load=LOAD,
            interactive=open_key(Priority.INTERACTIVE),
            bulk=open_key(Priority.BULK),
            idempotency=idempotency_key(record.owner, key) if key else None,
            id=record.id,
            owner=record.owner,
            priority=record.priority,
            image_steps=record.cost,
            most_of_one=bounds.of_one,
            most_of_all=bounds.of_all,
            about=f"{record.count} {recipe.passes} {recipe.model} {record.owner}",
            idempotency_ttl_s=UNFINISHED_TTL_S,
            most_jobs_open=bounds.jobs_open,
            most_jobs_kept=bounds.jobs_kept,
            results_ttl_s=results_ttl_s,
            job_bytes=self._bytes(record),
            most_bytes=bounds.bytes_kept,
            posted_at=record.created_at,
            fingerprint_count=len(fingerprints),
            queue_count=len(queues),
            fingerprints=fingerprints,
            queues=queues,
            commands=_flat(commands),
        )

    def _rate(self, worker: WorkerInfo) -> float:
        """Return the worker's image-steps a second, of the model that it gets most done of."""

        def cost(model: str) -> int:
            return self._cards[model].cost_per_image_step if model in self._cards else 1

        rates = (cost(name) * worker.pace(name).image_steps_per_s for name in worker.models)
        return max(rates, default=0.0)

    def _refuse(self, record: Record, bounds: Bounds, posted: Sequence[Any]) -> None:
        """Raise the problem that the script's verdict stands for, if it refused the job."""
        verdict, _, own, of_all, owners, _, jobs_open, jobs_kept, bytes_kept = posted
        rate = sum(map(self._rate, self._queue.latest.workers))
        match verdict:
            case b"reused":
                raise KeyReused
            case b"quota":
                # Owners share the workers equally.
                wait_s = _wait_s(own + record.cost - bounds.of_one, rate / owners)
                raise QuotaExceeded(own, _counted(record), bounds.of_one, wait_s)
            case b"open":
                raise TooManyJobs(jobs_open, "open", bounds.jobs_open, _JOBS_WAIT_S)
            case b"kept":
                raise TooManyJobs(jobs_kept, "kept", bounds.jobs_kept, _JOBS_WAIT_S)
            case b"bytes":
                raise TooManyBytes(bytes_kept, self._bytes(record), bounds.bytes_kept, _JOBS_WAIT_S)
            case b"full":
                wait_s = _wait_s(of_all + record.cost - bounds.of_all, rate)
                raise QueueFull(of_all, _counted(record), bounds.of_all, wait_s)


def _counted(record: Record) -> str:
    """Say what the job counts as, and why where that is not plain."""
    cost, recipe = record.cost_per_image_step, record.recipe
    if cost == 1:
        return str(record.cost)
    guided = ", guided," if recipe.passes > recipe.steps else ""
    return (
        f"{record.cost} ({record.image_steps} of model {recipe.model!r}, of which each{guided} "
        f"counts as {cost})"
    )


def _flat(commands: Iterable[Command]) -> Iterator[Part]:
    """Yield the number of a command's parts, then its parts, for each command."""
    for command in commands:
        yield len(command)
        yield from command


def _wait_s(image_steps: int, rate: float) -> int:
    """Estimate the seconds until the workers have run so many image-steps, at `rate` a second."""
    return min(math.ceil(image_steps / rate), _LONGEST_WAIT_S) if rate > 0 else _NO_WORKER_WAIT_S


def fingerprints_of(request: JobRequest) -> list[str]:
    """Return hashes of what the request means, whatever its spelling; the first is kept.

    The order of its fields makes no difference, nor does a default that is written out. A field
    that a later version adds makes none where it is not sent. The second hash is how versions
    before this one made theirs; it can go when none of their jobs is kept any more.
    """
    hashes = [_hash(request.model_dump(mode="json", exclude_defaults=True))]
    if request.model_fields_set <= set(_FIRST_FIELDS):
        before = request.model_dump_json(include=set(_FIRST_FIELDS))
        hashes.append(sha256(before.encode()).hexdigest())
    return hashes


def fingerprint_of_refused(body: Mapping[str, Any]) -> str:
    """Return the first of the hashes that an earlier version made of a body which is refused now.

    What is still known is brought into its form, and the rest is taken as it was sent. A null of
    the rest was a default.
    """
    known = dict(body)
    rest: dict[str, Any] = {}
    while True:
        try:
            request = JobRequest.model_validate(known)
            break
        except ValidationError as error:
            wrong = {str(each["loc"][0]) for each in error.errors(include_input=False)}
            rest |= {name: _in_form(name, known.pop(name)) for name in wrong}
    dumped = request.model_dump(mode="json", exclude_defaults=True)
    return _hash(dumped | {name: value for name, value in rest.items() if value is not None})


def _in_form(name: str, value: Any) -> Any:
    """Return a value as its field writes it, whatever the field's bounds: 0 as 0.0 where it may."""
    field = JobRequest.model_fields.get(name)
    try:
        return TypeAdapter(field.annotation or Any).validate_python(value) if field else value
    except ValidationError:
        return value


def _hash(sent: Mapping[str, Any]) -> str:
    return sha256(json.dumps(sent, sort_keys=True).encode()).hexdigest()
