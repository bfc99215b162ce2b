"""Workers that compute nothing, in one process: they start jobs, report progress as often as real ones, and finish them."""

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
    id: str
    count: int


class Pretence:
    """The contract's scripts, a pipeline of them at a time."""

    def __init__(self, redis_url: str) -> None:
        self._redis = Redis.from_url(redis_url)

    def start(self, jobs: Sequence[PretendJob]) -> None:
        self._run(transitions.START, [(job, {"attempt": 1, "external": 0}) for job in jobs])

    def report(self, jobs: Sequence[PretendJob], step: int) -> None:
        """Every shard of every job, as if all were in an engine."""
        shards = [(job, shard) for job in jobs for shard in range(shard_count(job.count))]
        self._run(
            transitions.PROGRESS,
            [
                (job, {"field": progress_field(n), "progress": f"{step},{step * SHARD_IMAGES}"})
                for job, n in shards
            ],
        )

    def finish(self, jobs: Sequence[PretendJob]) -> None:
        for job in jobs:
            pngs = [(index, b"a PNG, or nearly") for index in range(job.count)]
            images = [(index, hashlib.sha256(png).hexdigest(), png) for index, png in pngs]
            self._run(transitions.PUBLISH, [(job, {"images": images})])

    def _run(self, script: Script, calls: Sequence[tuple[PretendJob, dict[str, Any]]]) -> None:
        with self._redis.pipeline(transaction=False) as pipe:
            for job, args in calls:
                script.call(pipe, **transitions.transition_keys(job.id, "interactive"), **args)
            pipe.execute()


class Reports:
    """A process that reports on jobs while its block runs."""

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
    pretence, due, step = Pretence(redis_url), time.monotonic(), 0
    while not stop.wait(max(0.0, due - time.monotonic())):
        pretence.report(jobs, step % STEPS)
        due, step = max(due + REPORT_EVERY_S, time.monotonic()), step + 1
