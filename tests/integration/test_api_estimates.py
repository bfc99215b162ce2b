"""`queue.eta_s` against what then happens: jobs posted to the real API, run by workers whose time passes by calculation."""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random
from typing import Any

import httpx
import pytest
from redis import Redis
from rq.job import Job
from rq.serializers import JSONSerializer

from tests.support.simulation import finished_at
from worker.contract import WORKERS, Shard
from worker.info import ServedModel, WorkerInfo

CPU = {1: 0.0030, 2: 0.0032, 4: 0.0033, 8: 0.0039, 16: 0.0049, 32: 0.0061, 64: 0.0085}
STEEP_CPU = {2: 0.008, 4: 0.013, 8: 0.023, 16: 0.042, 32: 0.081}
GPU = {1: 0.002, 8: 0.002, 64: 0.0025}

MIXES = {
    "one image": [(1, 100, "interactive")],
    "one part": [(64, 100, "interactive")],
    "a big one alone": [(300, 50, "interactive")],
    "a big one before small ones": [(64, 200, "interactive"), (1, 50, "interactive"), (8, 100, "interactive")],
    "bulk before interactive": [(256, 50, "bulk"), (1, 100, "interactive"), (16, 100, "interactive"), (64, 20, "bulk")],
    "bulk before bulk": [(640, 20, "bulk"), (1, 100, "bulk"), (100, 20, "bulk")],
    "many small ones": [(1 + n % 3, 50 + 10 * n, "interactive") for n in range(20)],
    "many of all sizes": [([1, 4, 16, 64][n % 4], [20, 60, 100][n % 3], "interactive") for n in range(12)],
    "everything": [
        (130, 60, "interactive"),
        (64, 50, "bulk"),
        (2, 100, "interactive"),
        (100, 30, "bulk"),
        (1, 50, "interactive"),
    ],
}


def announce(redis: Redis, workers: int, seconds: dict[int, float]) -> None:
    for name in map(str, range(workers)):
        info = WorkerInfo(name, "cpu", {"tiny": ServedModel("fp32", 1, seconds)}, 1.0, time.time() + 60)
        redis.hset(WORKERS, name, info.to_json())


def shards(redis: Redis, job: dict[str, Any]) -> list[Shard]:
    ids = [f"{job['id']}-{number}" for number in range(-(-job["count"] // 64))]
    return [Shard.from_json(Job.fetch(id, connection=redis, serializer=JSONSerializer).kwargs) for id in ids]


@pytest.mark.parametrize("seconds", [CPU, STEEP_CPU, GPU], ids=["cpu", "steep cpu", "gpu"])
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("mix", MIXES)
def test_an_estimate_is_within_a_factor_of_two_of_what_then_happens(
    api: httpx.Client, redis: Redis, post: Callable[..., dict[str, Any]], mix: str, workers: int, seconds: dict[int, float]
):
    announce(redis, workers, seconds)
    jobs = [post(count=count, steps=steps, priority=priority) for count, steps, priority in MIXES[mix]]
    estimates = [api.get(job["links"]["self"]).json()["queue"]["eta_s"] for job in jobs]
    takes = [finished_at([shards(redis, job) for job in jobs], workers, seconds, Random(luck)) for luck in range(8)]
    told = {
        f"{job['count']} x {job['steps']} {job['priority']}": (estimate, sorted(round(ends[job["id"]], 1) for ends in takes))
        for job, estimate in zip(jobs, estimates, strict=True)
    }
    # beside which others a worker takes a job is luck, and to a small one it can be all the difference
    wrong = [job for job, (estimate, took) in told.items() if not min(took) / 2 - 0.1 <= estimate <= max(took) * 2 + 0.1]
    assert not wrong, f"(estimated, took): {told}"
