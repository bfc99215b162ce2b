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
from app.records.open_work import OpenWork
from app.records.record import Record
from app.schemas.jobs import Job, QueuePlace
from worker.jobs.domain import ANY_OWNER, Priority
from worker.jobs.keys import job_key, open_key, png_key, sha256_key
from worker.jobs.scripts import load

_ID = re.compile("[0-9a-f]{32}")
_READ = load("read_jobs")

Hash = Mapping[bytes, bytes]


@dataclass(frozen=True, slots=True)
class StoredJob:
    """A job as one read found it.

    Attributes:
        fields: The job's hash; empty for a job that is not there.
        digests: The sha256 of each finished image, by index.
        stored: Whether the job's PNGs are in Redis.
        position: Jobs before it; None where the job is not queued.
    """

    fields: Hash
    digests: Hash
    stored: bool
    position: int | None

    def status(self, job: str, owner: str, work: OpenWork) -> Job:
        """Give the job with this id to its owner, with its place in all open work.

        Raises:
            UnknownJob: It is not there, or is another owner's.
        """
        record = owned_record(job, owner, self.fields)
        return record.job(self.digests, self.stored, self._queue(record, work), time.time())

    def status_json(self, job: str, owner: str, work: OpenWork) -> bytes:
        """Give `status` as JSON, in less time.

        Raises:
            UnknownJob: The job is not there, or is another owner's.
        """
        record = owned_record(job, owner, self.fields)
        return record.json(self.digests, self.stored, self._queue(record, work), time.time())

    def _queue(self, record: Record, work: OpenWork) -> QueuePlace | None:
        return None if self.position is None else work.place(record.as_posted(), self.position)


def buffer_read(pipe: Pipeline, *jobs: str) -> None:
    """Add a command to the pipeline whose answer `parse_read` takes."""
    _READ.eval(
        pipe,
        interactive=open_key(Priority.INTERACTIVE),
        bulk=open_key(Priority.BULK),
        jobs=[(job_key(job), sha256_key(job), png_key(job)) for job in jobs],
        ids=jobs,
    )


def parse_read(answer: Sequence[Any]) -> list[StoredJob]:
    """Make a StoredJob of each job in an answer to `buffer_read`, in its order."""
    return [
        StoredJob(as_hash(fields), as_hash(digests), bool(stored), position)
        for fields, digests, stored, position in answer
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
    if not is_owned(fields.get(b"owner"), owner):
        raise UnknownJob(job)
    return Record.from_hash(fields)


def is_owned(stored: bytes | None, owner: str) -> bool:
    """Tell whether a job with this owner in its record is there, and is `owner`'s to see."""
    return stored is not None and owner in (ANY_OWNER, stored.decode())


def check_job_id(job: str) -> None:
    """Refuse what is no id, since it could name another key: `<id>:png` is one.

    Raises:
        UnknownJob: No job can have this id.
    """
    if not _ID.fullmatch(job):
        raise UnknownJob(job)
