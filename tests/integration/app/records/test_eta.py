"""`queue.eta_s` against what then happens.

Jobs are posted to the real API, and run by simulated workers whose time is calculated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import sha256
from random import Random
from typing import Any

import httpx
import pytest
from redis import Redis
from rq.job import Job
from rq.serializers import JSONSerializer

from app.settings import ApiSettings
from tests.support.server import create_fresh_app, serve
from tests.support.simulation import finished_at
from tests.support.worker import publish_info
from worker.jobs.domain import Shard, shard_count
from worker.jobs.worker_registry import ModelInfo, WorkerInfo

CPU = {1: 0.0030, 2: 0.0032, 4: 0.0033, 8: 0.0039, 16: 0.0049, 32: 0.0061, 64: 0.0085}
STEEP_CPU = {2: 0.008, 4: 0.013, 8: 0.023, 16: 0.042, 32: 0.081}
GPU = {1: 0.002, 8: 0.002, 64: 0.0025}

MIXES = {
    "one image": [(1, 100, "interactive")],
    "one part": [(64, 100, "interactive")],
    "a big one alone": [(300, 50, "interactive")],
    "a big one before small ones": [
        (64, 200, "interactive"),
        (1, 50, "interactive"),
        (8, 100, "interactive"),
    ],
    "bulk before interactive": [
        (256, 50, "bulk"),
        (1, 100, "interactive"),
        (16, 100, "interactive"),
        (64, 20, "bulk"),
    ],
    "bulk before bulk": [(640, 20, "bulk"), (1, 100, "bulk"), (100, 20, "bulk")],
    "small bulk after bulk": [(64, 200, "interactive"), (130, 150, "bulk"), (64, 100, "bulk")],
    "small bulk before bulk": [
        (4, 100, "bulk"),
        (640, 50, "bulk"),
        (256, 20, "bulk"),
        (16, 20, "bulk"),
    ],
    "lone bulk images": [
        (4, 50, "bulk"),
        (1, 200, "bulk"),
        (64, 20, "interactive"),
        (1, 100, "bulk"),
        (1, 200, "interactive"),
    ],
    "many small ones": [(1 + n % 3, 50 + 10 * n, "interactive") for n in range(20)],
    "many of all sizes": [
        ([1, 4, 16, 64][n % 4], [20, 60, 100][n % 3], "interactive") for n in range(12)
    ],
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
        info = WorkerInfo(name, "cpu", {"tiny": ModelInfo("fp32", "pytorch", 1, seconds)}, 1.0)
        publish_info(redis, info)


def shards(redis: Redis, job: dict[str, Any]) -> list[Shard]:
    """Return the shards that the API has queued for the job."""
    ids = [f"{job['id']}-{number}" for number in range(shard_count(job["count"]))]
    jobs = [Job.fetch(id, connection=redis, serializer=JSONSerializer) for id in ids]
    return [Shard.from_json(job.kwargs) for job in jobs]


def eta(client: httpx.Client, job: dict[str, Any]) -> float:
    return client.get(job["links"]["self"]).json()["queue"]["eta_s"]


def check(
    redis: Redis,
    jobs: list[dict[str, Any]],
    estimates: list[float],
    workers: int,
    seconds: dict[int, float],
) -> None:
    """Check that each estimate is within a factor of two of what then happens."""
    queue = [shards(redis, job) for job in jobs]
    # Which worker takes a job, beside which others, is luck. To a small job it can be decisive.
    runs = [
        finished_at(queue, workers, seconds, Random(luck))
        for luck in range(1 if workers == 1 else 6)
    ]
    taken = {
        f"{job['count']} x {job['steps']} {job['priority']}": (
            estimate,
            sorted(round(ends[job["id"]], 1) for ends in runs),
        )
        for job, estimate in zip(jobs, estimates, strict=True)
    }
    wrong = [
        job
        for job, (estimate, took) in taken.items()
        if not min(took) / 2 - 0.1 <= estimate <= max(took) * 2 + 0.1
    ]
    assert not wrong, f"(estimated, took): {taken}"


@pytest.mark.parametrize("seconds", [CPU, STEEP_CPU, GPU], ids=["cpu", "steep cpu", "gpu"])
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("mix", MIXES)
def test_an_estimate_is_within_a_factor_of_two_of_what_then_happens(
    api: httpx.Client,
    redis: Redis,
    post: Callable[..., dict[str, Any]],
    mix: str,
    workers: int,
    seconds: dict[int, float],
):
    announce(redis, workers, seconds)
    jobs = [
        post(count=count, steps=steps, priority=priority) for count, steps, priority in MIXES[mix]
    ]
    estimates = [eta(api, job) for job in jobs]
    check(redis, jobs, estimates, workers, seconds)


@pytest.fixture
def owners(settings: ApiSettings, redis: Redis) -> Iterator[list[httpx.Client]]:
    """Clients of one API, with a key each."""
    names = ("ann", "bob", "cy")
    keys = ",".join(f"{name}:{sha256(name.encode()).hexdigest()}" for name in names)
    with_keys = {"api_keys": keys, "key_requests_per_s": 1000}
    app = create_fresh_app(ApiSettings(**settings.model_dump() | with_keys))
    with serve(app) as url:
        clients = [
            httpx.Client(base_url=url, headers={"Authorization": f"Bearer {name}"}, timeout=10)
            for name in names
        ]
        yield clients
        for client in clients:
            client.close()


SHARED = {
    "one has much, two have little": [
        (0, 64, 200),
        (0, 64, 200),
        (0, 64, 200),
        (1, 16, 50),
        (2, 1, 100),
    ],
    "all have the same": [(n % 3, 32, 100) for n in range(6)],
    "the last has the most": [(0, 8, 100), (1, 8, 100), (2, 64, 100), (2, 32, 50)],
}


@pytest.mark.parametrize("seconds", [CPU, STEEP_CPU, GPU], ids=["cpu", "steep cpu", "gpu"])
@pytest.mark.parametrize("mix", SHARED)
def test_an_estimate_takes_into_account_that_owners_share(
    owners: list[httpx.Client], redis: Redis, mix: str, seconds: dict[int, float]
):
    announce(redis, 1, seconds)
    posted = []
    for owner, count, steps in SHARED[mix]:
        request = {"model": "tiny", "count": count, "steps": steps}
        posted.append((owners[owner], owners[owner].post("/v1/jobs", json=request).json()))
    jobs = [job for _, job in posted]
    estimates = [eta(client, job) for client, job in posted]
    check(redis, jobs, estimates, 1, seconds)
