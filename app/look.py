"""Reading one job, in one round trip, also at the end of a transaction that changed it."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from redis.asyncio.client import Pipeline

from app.errors import UnknownJob
from app.estimate import QUEUE_PLACE, alive, place_args, place_keys, queue_place
from app.record import Record
from app.schemas import Job, QueuePlace
from worker.contract import WORKERS, job_key, png_key, sha256_key
from worker.info import WorkerInfo

_ID = re.compile("[0-9a-f]{32}")
ANSWERS = 5  # to `look`


def look(pipe: Pipeline, job: str) -> None:
    """Buffer what `seen` wants. Must come last."""
    look_at(pipe, job)
    pipe.hvals(WORKERS)


def look_at(pipe: Pipeline, job: str) -> None:
    """The part that is the job's own, with one answer less."""
    pipe.hgetall(job_key(job))
    pipe.hgetall(sha256_key(job))
    pipe.exists(png_key(job))
    keys = place_keys(job)
    pipe.eval(QUEUE_PLACE, len(keys), *keys, *place_args(job))


def seen(job: str, owner: str, answers: Sequence[Any]) -> Job:
    """The job, from the answers to a pipeline that `look` was the end of. Raises UnknownJob, as `known`."""
    record = known(job, owner, answers[-ANSWERS])
    return record.job(*_rest(record, answers))


def seen_json(job: str, owner: str, answers: Sequence[Any]) -> bytes:
    """As `seen`, and at once as JSON."""
    record = known(job, owner, answers[-ANSWERS])
    return record.json(*_rest(record, answers))


def _rest(record: Record, answers: Sequence[Any]) -> tuple[Mapping[bytes, bytes], bool, QueuePlace | None, float]:
    """What `Record.job` wants besides the record."""
    _, hashes, stored, place, _ = answers[-ANSWERS:]
    queue = queue_place(place, record.recipe.model, workers(answers)) if place else None
    return hashes, bool(stored), queue, time.time()


def workers(answers: Sequence[Any]) -> list[WorkerInfo]:
    """Those that were alive at the look."""
    return alive(answers[-1], time.time())


def known(job: str, owner: str, fields: Mapping[bytes, bytes]) -> Record:
    """Raises UnknownJob for a job of another owner as for one that is not there, and after the same question to Redis."""
    if fields.get(b"owner") != owner.encode():
        raise UnknownJob(job)
    return Record.from_hash(fields)


def check(job: str) -> None:
    """Anything that is no id could name another key: `<id>:png` is one."""
    if not _ID.fullmatch(job):
        raise UnknownJob(job)
