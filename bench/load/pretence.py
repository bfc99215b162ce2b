"""Workers that compute nothing, all in one process.

They start jobs, report progress as often as real ones, and finish the jobs.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from typing import Any

from redis import Redis

from worker.jobs import transitions
from worker.jobs.domain import SHARD_IMAGES, shard_count
from worker.jobs.keys import progress_field
from worker.jobs.scripts import Script

REPORT_EVERY_S = 0.05
STEPS = 1000


@dataclass(frozen=True, slots=True)
class PretendJob:
    """A job that no worker computes."""

    id: str
    count: int


class Pretence:
    """A worker that writes what real workers write, many jobs in one pipeline."""

    def __init__(self, redis_url: str) -> None:
        self._redis = Redis.from_url(redis_url)

    def start(self, jobs: Sequence[PretendJob]) -> None:
        """Let the jobs run."""
        options = {"number": 0, "attempt": 1, "external": 0, "fingerprint": "", "others": ""}
        self._run(transitions.START, [(job, options) for job in jobs])

    def report(self, jobs: Sequence[PretendJob], step: int) -> None:
        """Report `step` for every shard of every job, as if all were in an engine."""
        progress = f"{step},{step * SHARD_IMAGES}"
        shards = [(job, shard) for job in jobs for shard in range(shard_count(job.count))]
        self._run(
            transitions.PROGRESS,
            [
                (job, {"field": progress_field(shard), "progress": progress})
                for job, shard in shards
            ],
        )

    def finish(self, jobs: Sequence[PretendJob]) -> None:
        """Store all images of the jobs, which ends them."""
        png = b"a PNG, or nearly"
        digest = hashlib.sha256(png).hexdigest()
        for job in jobs:
            images = [(index, digest, png, len(png)) for index in range(job.count)]
            self._run(transitions.PUBLISH, [(job, {"field": "", "progress": "", "images": images})])

    def _run(self, script: Script, calls: Sequence[tuple[PretendJob, dict[str, Any]]]) -> None:
        with self._redis.pipeline(transaction=False) as pipe:
            for job, args in calls:
                script.call(pipe, **transitions.transition_keys(job.id, "interactive"), **args)
            pipe.execute()


class Reports:
    """A process that reports progress of jobs while its block runs."""

    def __init__(self, redis_url: str, jobs: Sequence[PretendJob]) -> None:
        spawn = get_context("spawn")
        self._stop = spawn.Event()
        self._process = spawn.Process(target=_report, args=(redis_url, jobs, self._stop))

    def __enter__(self) -> Reports:
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._process.join()


def _report(redis_url: str, jobs: Sequence[PretendJob], stop: Event) -> None:
    pretence = Pretence(redis_url)
    due = time.monotonic()
    step = 0
    while not stop.wait(max(0.0, due - time.monotonic())):
        pretence.report(jobs, step % STEPS)
        due = max(due + REPORT_EVERY_S, time.monotonic())
        step += 1
