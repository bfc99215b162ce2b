"""Reading jobs, in one round trip, also at the end of a transaction that changed one."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio.client import Pipeline

from app.problems.problems import UnknownJob
from app.records.eta import MOST_READ, queue_place
from app.records.record import Record
from app.schemas.jobs import Job, QueuePlace
from worker.jobs.domain import Priority
from worker.jobs.keys import LEFT, WORKERS, job_key, open_key, png_key, sha256_key
from worker.jobs.scripts import load
from worker.jobs.worker_registry import WorkerInfo, parse_workers

_ID = re.compile("[0-9a-f]{32}")
_READ = load("read_jobs")

Hash = Mapping[bytes, bytes]


@dataclass(frozen=True, slots=True)
class StoredJob:
    """What a look found of one job. `place` is what queue_place.lua says, `workers` what the living say of themselves."""

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
        return parse_workers(self.workers)

    def _queue(self, record: Record) -> QueuePlace | None:
        return queue_place(self.place, record.recipe.model, self.alive()) if self.place else None


def buffer_read(pipe: Pipeline, *jobs: str) -> None:
    """Buffer a command whose answer `found` reads."""
    _READ.eval(
        pipe,
        interactive=open_key(Priority.INTERACTIVE),
        bulk=open_key(Priority.BULK),
        left=LEFT,
        workers=WORKERS,
        jobs=[(job_key(job), sha256_key(job), png_key(job)) for job in jobs],
        most=MOST_READ,
        ids=jobs,
    )


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
