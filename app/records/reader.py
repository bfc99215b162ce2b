"""Reads all that a job's status says, in one round trip.

The command can also end a transaction that changes the job.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio.client import Pipeline

from app.problems.problems import UnknownJob
from app.records.eta import PLACE_ARGS, PLACE_KEYS, QUEUE_PLACE, queue_place
from app.records.record import Record
from app.schemas.jobs import Job, QueuePlace
from worker.jobs import worker_registry
from worker.jobs.keys import WORKERS, job_key, png_key, sha256_key
from worker.jobs.worker_registry import WorkerInfo

_ID = re.compile("[0-9a-f]{32}")

# KEYS and ARGV: those of `place`, workers, then record, hashes and PNGs of each job; ids.
# One command, since redis-py takes longer over one than Redis does.
_LOOK = (
    QUEUE_PLACE
    + worker_registry.ALIVE
    + """
local found = {}
for i = 1, #ARGV - 2 do
  local record, hashes, pngs = unpack(KEYS, 3 * i + 2, 3 * i + 4)
  found[i] = {C('HGETALL', record), C('HGETALL', hashes), C('EXISTS', pngs), place(ARGV[i + 2], record)}
end
return {alive(KEYS[4]), found}"""
)

Hash = Mapping[bytes, bytes]


@dataclass(frozen=True, slots=True)
class StoredJob:
    """A job as one read found it.

    Attributes:
        fields: The job's hash; empty for a job that is not there.
        digests: The sha256 of each finished image, by index.
        stored: Whether the job's PNGs are in Redis.
        place: The answer of QUEUE_PLACE; None where the job is not queued.
        workers: The entries of the live workers.
    """

    fields: Hash
    digests: Hash
    stored: bool
    place: Sequence[int] | None
    workers: Sequence[bytes]

    def status(self, job: str, owner: str) -> Job:
        """Give the job with this id to its owner.

        Raises:
            UnknownJob: It is not there, or is another owner's.
        """
        record = owned_record(job, owner, self.fields)
        return record.job(self.digests, self.stored, self._queue(record), time.time())

    def status_json(self, job: str, owner: str) -> bytes:
        """Give `status` as JSON, in less time.

        Raises:
            UnknownJob: The job is not there, or is another owner's.
        """
        record = owned_record(job, owner, self.fields)
        return record.json(self.digests, self.stored, self._queue(record), time.time())

    def alive(self) -> list[WorkerInfo]:
        """List the workers that were alive at the read."""
        return worker_registry.read(self.workers)

    def _queue(self, record: Record) -> QueuePlace | None:
        return queue_place(self.place, record.recipe.model, self.alive()) if self.place else None


def buffer_read(pipe: Pipeline, *jobs: str) -> None:
    """Add a command to the pipeline whose answer `parse_read` takes."""
    keys = [key for job in jobs for key in (job_key(job), sha256_key(job), png_key(job))]
    keys = [*PLACE_KEYS, WORKERS, *keys]
    pipe.eval(_LOOK, len(keys), *keys, *PLACE_ARGS, *jobs)


def parse_read(answer: Sequence[Any]) -> list[StoredJob]:
    """Make a StoredJob of each job in an answer to `buffer_read`, in its order."""
    workers, jobs = answer
    return [
        StoredJob(as_hash(fields), as_hash(digests), bool(stored), place, workers)
        for fields, digests, stored, place in jobs
    ]


def as_hash(flat: Sequence[bytes]) -> Hash:
    """Pair up names and values, which HGETALL gives a script in one flat list."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def owned_record(job: str, owner: str, fields: Hash) -> Record:
    """Make a record of a job's hash, for its owner.

    Nothing tells another owner's job from one that is not there: neither the error, nor the
    question to Redis before it.

    Raises:
        UnknownJob: The job is not there, or is another owner's.
    """
    if fields.get(b"owner") != owner.encode():
        raise UnknownJob(job)
    return Record.from_hash(fields)


def check_job_id(job: str) -> None:
    """Refuse what is no id, since it could name another key: `<id>:png` is one.

    Raises:
        UnknownJob: No job can have this id.
    """
    if not _ID.fullmatch(job):
        raise UnknownJob(job)
