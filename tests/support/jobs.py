"""Jobs for workers under test, posted to Redis as the API posts them."""

from __future__ import annotations

from typing import Any

from redis import Redis

from worker.jobs.domain import Recipe, Shard, shards_of
from worker.jobs.keys import CHANGES, job_key, open_key
from worker.jobs.shard_queue import enqueue, join_rotations

JOB = "a" * 32
WEIGHTS = "ab" * 32


def make_recipe(
    weights: str = WEIGHTS,
    *,
    model: str = "tiny",
    sampler: str = "ddpm",
    steps: int = 4,
    seed: int = 7,
) -> Recipe:
    """Return a recipe with the fixed small variance."""
    return Recipe(model, weights, sampler, steps, "fixed_small", 0.0, seed)


def make_shards(
    recipe: Recipe,
    *,
    job: str = JOB,
    count: int = 3,
    owner: str = "local",
    priority: str = "interactive",
) -> list[Shard]:
    """Return the shards of a job of `count` images."""
    return list(shards_of(job, recipe, 0, count, owner, priority))


def make_shard(recipe: Recipe, **options: Any) -> Shard:
    """Return the first shard of a job; `options` are those of `make_shards`."""
    return make_shards(recipe, **options)[0]


def enqueue_shards(redis: Redis, *shards: Shard) -> None:
    """Put shards into their queues, without the record of a job."""
    with redis.pipeline() as pipe:
        enqueue(shards, pipe)
        join_rotations(shards, pipe)
        pipe.execute()


def post_job(redis: Redis, recipe: Recipe, **options: Any) -> Shard:
    """Post a job with its record, and return its first shard.

    `options` are those of `make_shards`.
    """
    shards = make_shards(recipe, **options)
    first = shards[0]
    record = {
        "id": first.job,
        "state": "queued",
        "count": sum(shard.count for shard in shards),
        "priority": first.job_priority,
        "results_ttl_s": 600,
        "attempts": 0,
    }
    with redis.pipeline() as pipe:
        pipe.hset(job_key(first.job), mapping=record)
        pipe.zadd(open_key(first.job_priority), {first.job: 1})
        enqueue(shards, pipe)
        join_rotations(shards, pipe)
        pipe.publish(CHANGES, f"{first.job} queued")
        pipe.execute()
    return first


def state_of(redis: Redis, job: str) -> str | None:
    """Return the state of the job's record; None if it has none."""
    state = redis.hget(job_key(job), "state")
    return state and state.decode()


def have_ended(redis: Redis, *jobs: str) -> bool:
    """Tell whether none of the jobs waits or runs."""
    return all(state_of(redis, job) not in ("queued", "running") for job in jobs)
