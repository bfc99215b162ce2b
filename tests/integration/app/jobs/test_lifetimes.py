"""How long a job's keys live: while it is open, and from its end on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
from redis import Redis

from tests.support.worker import IdleWorker
from worker.jobs.keys import EXPIRING, LEFT, job_key, open_key, owner_key, png_key, sha256_key
from worker.jobs.policy import RECORD_TTL_S, UNFINISHED_TTL_S
from worker.jobs.reaper import Reaper

Post = Callable[..., dict[str, Any]]

SOON_S = 100


def about_to_expire(redis: Redis) -> None:
    """Let all keys that expire have as little time left as after nearly seven days."""
    for key in redis.keys("*"):
        if redis.ttl(key) > SOON_S:
            redis.expire(key, SOON_S)


def expiring_soon(redis: Redis, *keys: str) -> list[str]:
    """Return those of the keys that have little time left, or are gone."""
    return [key for key in keys if redis.ttl(key) <= SOON_S]


def test_no_key_of_a_running_job_expires_while_it_runs(
    api: httpx.Client, redis: Redis, worker: IdleWorker
) -> None:
    request = {"model": "tiny", "count": 70, "steps": 10}
    headers = {"Idempotency-Key": "a"}
    job = api.post("/v1/jobs", json=request, headers=headers).json()["id"]
    worker.start(job)
    worker.publish(job, [0])
    redis.hset(job_key(job), "external", 1)
    redis.zadd(EXPIRING, {job: 1})
    about_to_expire(redis)
    Reaper(redis).run_once()
    assert not expiring_soon(
        redis,
        job_key(job),
        sha256_key(job),
        png_key(job),
        f"rq:job:{job}-0",
        f"rq:job:{job}-1",
        owner_key("local"),
    )
    assert api.post("/v1/jobs", json=request, headers=headers).json()["id"] == job
    [[key]] = [redis.keys("ddpm:idempotency:*")]
    assert redis.ttl(key) > SOON_S
    assert redis.zscore(EXPIRING, job) > 1, "its objects in the results store stay as well"


def test_a_job_that_waits_for_weeks_stays_listed_with_its_owner(
    api: httpx.Client, redis: Redis, post: Post
) -> None:
    job = post(count=1)["id"]
    about_to_expire(redis)
    redis.zrem(owner_key("local"), job)
    Reaper(redis).run_once()
    assert [listed["id"] for listed in api.get("/v1/jobs").json()["jobs"]] == [job]


def test_the_life_of_a_record_counts_from_the_end_of_its_job(
    redis: Redis, post: Post, worker: IdleWorker
) -> None:
    job = post(count=1)["id"]
    worker.start(job)
    about_to_expire(redis)
    Reaper(redis).run_once()
    worker.publish(job, [0])
    Reaper(redis).run_once()
    day_s = 86_400
    assert day_s + RECORD_TTL_S - 60 < redis.ttl(job_key(job)) <= day_s + RECORD_TTL_S
    assert day_s - 60 < redis.ttl(png_key(job)) <= day_s
    # The key of the listing outlives what it lists.
    assert redis.ttl(owner_key("local")) >= redis.ttl(job_key(job))


def test_a_long_queue_is_prolonged_a_part_at_a_time_and_without_a_gap(redis: Redis) -> None:
    jobs = [f"{number:032x}" for number in range(250)]
    for number, job in enumerate(jobs):
        if number % 3:
            redis.hset(job_key(job), mapping={"state": "queued", "count": 1})
            redis.expire(job_key(job), SOON_S)
        redis.hset(LEFT, job, "1 1 1 tiny local")
        redis.zadd(open_key("bulk"), {job: number})
    kept = [job for number, job in enumerate(jobs) if number % 3]
    reaper = Reaper(redis)
    for _ in range(3):
        reaper.run_once()
    assert redis.zrange(open_key("bulk"), 0, -1) == [job.encode() for job in kept]
    assert {key.decode() for key in redis.hkeys(LEFT)} == set(kept)
    assert all(redis.ttl(job_key(job)) > UNFINISHED_TTL_S - 60 for job in kept)
