"""Waits: from a post to its first step, and behind other people's jobs."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench.fleet.rates import Figures
from bench.fleet.stub_service import MODELS, OWNERS, PostedJob, StubPace, StubService
from bench.fleet.stub_worker import REST_S

# What a job that comes late differs in from those that wait.
LATE_JOBS: dict[str, dict[str, Any]] = {
    "another owner": {"owner": OWNERS[1]},
    "another model": {"model": MODELS[1]},
    "class bulk": {"priority": "bulk"},
}
_REFILL_EVERY_S = 0.05


def first_step(service: StubService, times: int, pace: float, steps: int) -> Figures:
    """Measure the time from a post to its first step, in a worker that has nothing to do.

    Args:
        service: The service.
        times: How many jobs are posted, one after the other.
        pace: Image-steps a second of the worker.
        steps: Steps of each image.
    """
    waits_s, answers_s = [], []
    with service.workers([StubPace(pace)]) as workers:
        for _ in range(times):
            posted_at = time.time()
            [job] = service.post([PostedJob(steps=steps)])
            answers_s.append(time.time() - posted_at)
            service.until_ended(job)
            waits_s.append(workers.stepping_since() - posted_at)
            time.sleep(2 * REST_S)
    return {
        "post to answer, median ms": 1e3 * statistics.median(answers_s),
        "post to first step, median ms": 1e3 * statistics.median(waits_s),
        "post to first step, p95 ms": 1e3 * statistics.quantiles(waits_s, n=20)[-1],
    }


def behind(service: StubService, backlog: int, steps: int, refilled: bool) -> Figures:
    """Measure after which share of a backlog of one-image jobs a late job is done.

    The worker is busy with the backlog when the late job comes.

    Args:
        service: The service.
        backlog: How many jobs wait.
        steps: Steps of each image.
        refilled: Whether new ones keep so many waiting until the late job is done.
    """
    figures = {}
    small = PostedJob(steps=steps)
    ids: list[str] = []
    for what, differs in LATE_JOBS.items():
        # What the late job before this one has waited for is made up for.
        ids += service.post([small] * (backlog - service.open_jobs()))
        with (
            service.workers([StubPace()]),
            _refill(service, small, backlog if refilled else 0, ids),
        ):
            [job] = service.post([PostedJob(steps=steps, **differs)])
            service.until_ended(job)
        [late] = service.times([job])
        ended = [
            times
            for times in service.times(ids)
            if late.created_at < times.finished_at < late.finished_at
        ]
        name = f"{'refilled ' if refilled else ''}{backlog}"
        figures[f"{what}: done after this share of {name}"] = len(ended) / backlog
    service.clear()
    return figures


@contextmanager
def _refill(service: StubService, job: PostedJob, most: int, ids: list[str]) -> Iterator[None]:
    """Keep so many jobs open during the block, by posts of another thread; append their ids."""
    over = threading.Event()

    def post() -> None:
        while not over.wait(_REFILL_EVERY_S):
            ids.extend(service.post([job] * max(0, most - service.open_jobs())))

    thread = threading.Thread(target=post)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
