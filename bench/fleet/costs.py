"""Costs of single operations for the job store, by the length of the queue."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

from bench.fleet.rates import Figures
from bench.fleet.server_costs import script_log, server_costs
from bench.fleet.stub_service import OWNERS, PostedJob, StubPace, StubService
from worker.jobs.domain import MAX_COUNT, SHARD_IMAGES

_SHARDS_A_JOB = MAX_COUNT // SHARD_IMAGES
_SAMPLES = 100


def by_length(service: StubService, names: Mapping[str, str], shards: int, steps: int) -> Figures:
    """Measure what a status, a cancel and a take cost the server behind so many shards.

    Jobs of one image are the samples: they are the youngest of all. Half are cancelled, and the
    worker takes the others among those that wait.

    Args:
        service: The service.
        names: Names of its scripts, by their SHA-1.
        shards: How many wait before the samples.
        steps: Steps of each image.
    """
    for count, jobs in ((MAX_COUNT, shards // _SHARDS_A_JOB), (1, shards % _SHARDS_A_JOB)):
        service.post([PostedJob(count, steps, priority="bulk")] * jobs)
    samples = service.post([PostedJob(steps=steps, priority="bulk")] * (2 * _SAMPLES))
    with server_costs(service.redis) as status:
        _call(service, "GET", "/v1/jobs/{}", samples)
    with server_costs(service.redis) as cancel:
        _call(service, "POST", "/v1/jobs/{}/cancel", samples[::2])
    others = service.post([PostedJob(steps=steps, owner=OWNERS[1])] * _SAMPLES)
    waiting = service.waiting_shards()
    with script_log(service.redis, names) as log, service.workers([StubPace()]):
        for job in others:
            service.until_ended(job)
        taken = waiting - service.waiting_shards()
    service.clear()
    takes = [us for name, times in log.items() if name.endswith("TAKE") for us in times]
    return {
        f"status behind {shards}, server CPU µs": 1e6 * status.cpu_s / len(samples),
        f"cancel behind {shards}, server CPU µs": 1e6 * cancel.cpu_s / _SAMPLES,
        f"take behind {shards}, µs a call": statistics.median(takes or [math.nan]),
        f"take behind {shards}, µs a shard": sum(takes) / taken,
    }


def scripts(service: StubService, names: Mapping[str, str], jobs: int, steps: int) -> Figures:
    """Measure which scripts one worker calls for one-image jobs: how often, and what each costs."""
    service.post([PostedJob(steps=steps)] * jobs)
    with script_log(service.redis, names) as log, service.workers([StubPace()]):
        service.until_idle()
    by_cost = sorted(log.items(), key=lambda script: -sum(script[1]))
    figures = {"µs of all scripts a job": sum(sum(times) for _, times in by_cost) / jobs}
    for name, times in by_cost:
        short = name.rpartition(".")[2].strip("_").lower()
        figures[f"{short}, calls a job"] = len(times) / jobs
        figures[f"{short}, µs a job"] = sum(times) / jobs
    return figures


def _call(service: StubService, method: str, path: str, jobs: list[str]) -> None:
    for job in jobs:
        service.call(method, path.format(job))
