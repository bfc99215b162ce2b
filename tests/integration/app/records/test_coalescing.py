"""The cost of a status: one round trip to Redis, less where many are asked for at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.main import create_app
from app.operation import redis_client
from app.records.coalescing import JobReader
from app.records.queue_reader import QueueReader
from app.settings import ApiSettings
from tests.support.processes import later
from tests.support.proxy import Proxy, proxy
from tests.support.server import serve
from tests.support.worker import IdleWorker

Post = Callable[..., dict[str, Any]]


@pytest.fixture
def between(valkey_url: str) -> Iterator[Proxy]:
    with proxy(valkey_url) as between:
        yield between


@pytest.fixture
def behind(between: Proxy, models_dir: Path) -> Iterator[httpx.Client]:
    """A client of an API whose Redis is behind the proxy, and which often reads states."""
    app = create_app(ApiSettings(redis_url=between.url, models_dir=models_dir))
    app.state.notifier.poll_every_s = 0.1
    with serve(app) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.mark.parametrize("count", [1, 64, 1024])
def test_a_status_is_one_round_trip(
    between: Proxy, behind: httpx.Client, worker: IdleWorker, post: Post, count: int
) -> None:
    job = post(count=count)["id"]
    between.topic = job.encode()

    def trips(state: str) -> int:
        between.trips = 0
        assert behind.get(f"/v1/jobs/{job}").json()["state"] == state
        return between.trips

    assert trips("queued") == 1
    worker.start(job)
    worker.publish(job, range(count // 2))
    assert trips("running") == 1
    worker.publish(job, range(count // 2, count))
    assert trips("finished") == 1


def test_a_job_is_built_once_for_a_client_that_waits(
    between: Proxy, behind: httpx.Client, worker: IdleWorker, post: Post
) -> None:
    job = post(count=1024)["id"]
    between.topic = f"{job}:sha256".encode()
    with later(1.0, worker.start, job):
        answer = behind.get(f"/v1/jobs/{job}", params={"wait": 30})
    assert answer.json()["state"] == "running", answer.text
    assert between.trips == 1


async def test_jobs_that_are_read_at_once_are_one_round_trip(between: Proxy, post: Post) -> None:
    jobs = [post(count=count)["id"] for count in range(1, 11)]
    assert len(jobs) < JobReader.at_once
    between.topic = b"ddpm:job:"
    redis = redis_client.connect(between.url)
    queue = QueueReader({})
    reader = JobReader(redis, queue)
    asked = [*jobs, *jobs]
    answers = await asyncio.gather(*map(reader.read, asked))
    counts = [
        stored.status(job, "local", queue.latest).count
        for job, stored in zip(asked, answers, strict=True)
    ]
    assert counts == [*range(1, 11)] * 2
    assert between.trips == 1
    await redis.aclose()


async def test_an_asker_that_leaves_cancels_no_other_askers_read(
    valkey_url: str, post: Post
) -> None:
    job = post()["id"]
    redis = redis_client.connect(valkey_url)
    queue = QueueReader({})
    reader = JobReader(redis, queue)
    leaves, stays = (asyncio.ensure_future(reader.read(job)) for _ in range(2))
    await asyncio.sleep(0)
    leaves.cancel()
    assert (await stays).status(job, "local", queue.latest).id == job
    await redis.aclose()
