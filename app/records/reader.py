"""Reading jobs, in one round trip, also at the end of a transaction that changed one."""

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
    """What a look found of one job. `place` is what QUEUE_PLACE says, `workers` what the living say of themselves."""

    fields: Hash
    hashes: Hash
    stored: bool
    place: Sequence[int] | None
    workers: Sequence[bytes]

    def seen(self, job: str, owner: str) -> Job:
        """Raises UnknownJob, as `known`."""
        record = owned_record(job, owner, self.fields)
        return record.job(self.hashes, self.stored, self._queue(record), time.time())

    def seen_json(self, job: str, owner: str) -> bytes:
        """As `seen`, and at once as JSON."""
        record = owned_record(job, owner, self.fields)
        return record.json(self.hashes, self.stored, self._queue(record), time.time())

    def alive(self) -> list[WorkerInfo]:
        """Workers that were, at the look."""
        return worker_registry.read(self.workers)

    def _queue(self, record: Record) -> QueuePlace | None:
        return queue_place(self.place, record.recipe.model, self.alive()) if self.place else None


def buffer_read(pipe: Pipeline, *jobs: str) -> None:
    """Buffer a command whose answer `found` reads."""
    keys = [key for job in jobs for key in (job_key(job), sha256_key(job), png_key(job))]
    keys = [*PLACE_KEYS, WORKERS, *keys]
    pipe.eval(_LOOK, len(keys), *keys, *PLACE_ARGS, *jobs)


def parse_read(answer: Sequence[Any]) -> list[StoredJob]:
    """One for each job."""
    workers, jobs = answer
    return [
        StoredJob(as_hash(fields), as_hash(hashes), bool(stored), place, workers)
        for fields, hashes, stored, place in jobs
    ]


def as_hash(flat: Sequence[bytes]) -> Hash:
    """What HGETALL says within a script."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def owned_record(job: str, owner: str, fields: Hash) -> Record:
    """Raises UnknownJob for a job of another owner as for one that is not there, and after the same question to Redis."""
    if fields.get(b"owner") != owner.encode():
        raise UnknownJob(job)
    return Record.from_hash(fields)


def check_job_id(job: str) -> None:
    """Anything that is no id could name another key: `<id>:png` is one."""
    if not _ID.fullmatch(job):
        raise UnknownJob(job)
