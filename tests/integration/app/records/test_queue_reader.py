"""All open work, as estimates see it: how often it is read, and how much of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from random import Random
from typing import Any

import pytest
import redis.asyncio as asyncio_redis
from redis import Redis

from app.operation import redis_client
from app.records.coalescing import JobReader
from app.records.open_work import MOST_READ, OpenJob
from app.records.queue_reader import QueueReader
from tests.support.cards import card_of
from tests.support.clock import SimulatedClock
from tests.support.jobs import make_recipe, make_shards
from tests.support.proxy import proxy
from tests.support.simulation import finished_at
from tests.support.worker import publish_info
from worker.jobs.keys import LEFT, LOAD, open_key
from worker.jobs.worker_registry import ModelInfo, WorkerInfo

Post = Callable[..., dict[str, Any]]
SECONDS = {1: 0.0030, 2: 0.0032, 4: 0.0033, 8: 0.0039, 16: 0.0049, 32: 0.0061, 64: 0.0085}
STEPS = 20


@pytest.fixture
async def client(valkey_url: str) -> AsyncIterator[asyncio_redis.Redis]:
    client = redis_client.connect(valkey_url)
    yield client
    await client.aclose()


async def test_all_open_work_is_read_once_a_second_and_only_while_somebody_asks(
    valkey_url: str, post: Post
) -> None:
    clock = SimulatedClock()
    job = post()["id"]
    with proxy(valkey_url) as between:
        between.topic = LEFT.encode()
        client = redis_client.connect(between.url)
        reader = JobReader(client, QueueReader({}, clock))

        async def reads(questions: int) -> int:
            before = between.trips
            for _ in range(questions):
                await reader.read(job)
            return between.trips - before

        assert await reads(10) == 1
        clock.pass_s(0.9)
        assert await reads(10) == 0
        clock.pass_s(0.2)
        assert await reads(10) == 1
        await client.aclose()


async def test_a_read_is_bounded_however_long_the_queue_is(
    client: asyncio_redis.Redis, redis: Redis
) -> None:
    fill(redis, "ann", 2000)
    reader = QueueReader({})
    async with client.pipeline(transaction=False) as pipe:
        assert reader.buffer_if_due(pipe)
        answers = await pipe.execute()
    [[_, load, _, [number, flat]]] = answers
    assert (number, len(flat)) == (2000, 3 * MOST_READ)
    assert load == [b"ann", b"40000"]


def test_a_job_that_has_just_been_posted_counts_for_the_next_one() -> None:
    work = QueueReader({}).latest
    work.workers = [worker_info()]
    alone = work.place(open_job("a", posted_at=1), 0).eta_s
    for number in range(20):
        work.add(open_job(f"b{number}", count=64, posted_at=2))
        work.add(open_job(f"b{number}", count=64, posted_at=2))
    behind = work.place(open_job("c", count=64, posted_at=3), 20).eta_s
    assert alone == pytest.approx(STEPS * SECONDS[1], abs=0.1)
    assert behind == pytest.approx(21 * STEPS * SECONDS[64], rel=0.1)


def open_job(
    id: str,
    owner: str = "ann",
    count: int = 1,
    posted_at: float = 0.0,
    interactive: bool = False,
    model: str = "tiny",
    cost: int = 1,
) -> OpenJob:
    return OpenJob(id, owner, model, interactive, count, STEPS, posted_at, count * STEPS, cost)


def worker_info(*models: str) -> WorkerInfo:
    served = ModelInfo("fp32", "pytorch", 1, SECONDS)
    return WorkerInfo("a", "cpu", dict.fromkeys(models or ("tiny",), served), 1.0)


def announce(redis: Redis) -> None:
    publish_info(redis, worker_info())


def fill(redis: Redis, owner: str, jobs: int) -> None:
    """Write what the store has when an owner has so many bulk jobs of one image open."""
    with redis.pipeline() as pipe:
        for number in range(jobs):
            job = f"{owner}-{number}"
            pipe.zadd(open_key("bulk"), {job: number})
            pipe.hset(LEFT, job, f"{STEPS} 1 {STEPS} tiny {owner}")
        pipe.hset(LOAD, owner, jobs * STEPS)
        pipe.execute()


async def test_a_place_far_back_is_estimated_within_a_factor_of_two(
    client: asyncio_redis.Redis, redis: Redis
) -> None:
    announce(redis)
    fill(redis, "ann", 900)
    fill(redis, "bob", 1)
    redis.zadd(open_key("bulk"), {"bob-0": 900})
    reader = QueueReader({})
    async with client.pipeline(transaction=False) as pipe:
        reader.buffer_if_due(pipe)
        reader.take(await pipe.execute())

    def estimate(owner: str, number: int, position: int) -> float:
        job = open_job(f"{owner}-{number}", owner, posted_at=position)
        eta_s = reader.latest.place(job, position).eta_s
        assert eta_s is not None
        return eta_s

    recipe = make_recipe(steps=STEPS)
    jobs = [
        make_shards(recipe, job=f"{owner}-{number}", count=1, owner=owner, priority="bulk")
        for owner, of_owner in (("ann", 900), ("bob", 1))
        for number in range(of_owner)
    ]
    ends = finished_at(jobs, 1, SECONDS, Random(0))
    estimates = {
        "ann-100": estimate("ann", 100, 100),
        "ann-450": estimate("ann", 450, 450),
        "ann-899": estimate("ann", 899, 899),
        "bob-0": estimate("bob", 0, 900),
    }
    took = {job: ends[job] for job in estimates}
    wrong = [
        job for job in took if not took[job] / 2 - 0.1 <= estimates[job] <= took[job] * 2 + 0.1
    ]
    assert not wrong, (estimates, took)


def test_work_of_another_model_counts_as_what_it_costs() -> None:
    def eta_s(cost: int) -> float:
        cards = {
            "tiny": card_of("tiny"),
            "large": card_of("large", gflop_per_image_step=0.6 * cost),
        }
        work = QueueReader(cards).latest
        work.workers = [worker_info("tiny", "large")]
        work.add(open_job("a", count=1, posted_at=1, model="large", cost=cost))
        place = work.place(open_job("b", count=64, posted_at=2), 1)
        assert place.eta_s is not None
        return place.eta_s

    # 64 images of 20 steps take 0.17 s, and one image of the other model a sixty-fourth of that,
    # or half of it; models take turns.
    assert eta_s(1) == pytest.approx(20 * SECONDS[64], abs=0.06)
    assert eta_s(64) == pytest.approx(2 * 20 * SECONDS[64], abs=0.06)
