"""Shards in RQ's queues, and workers that take them, without a network."""

from __future__ import annotations

from redis import Redis

from tests.support.jobs import enqueue_shards, make_recipe
from worker.jobs.domain import Priority, Shard
from worker.jobs.keys import queue_name, rotation_name
from worker.jobs.shard_queue import make_queue, reap, sweep
from worker.process.shard_leases import ShardLeases

LEASE_S = 1.0
MODEL = "of-these-tests"
QUEUES = [rotation_name(priority, MODEL) for priority in Priority]
RECIPE = make_recipe(model=MODEL, steps=10)


def shard(job: str, priority: str = "interactive", number: int = 0) -> Shard:
    return Shard(job, number, 64 * number, 64, "local", priority, RECIPE)


post = enqueue_shards


def worker(redis: Redis, lease_s: float = LEASE_S) -> ShardLeases:
    joined = ShardLeases(redis, QUEUES, lease_s)
    joined.heartbeat()
    return joined


def rescue(redis: Redis, lease_s: float = LEASE_S) -> list[tuple[str, str]]:
    sweep(redis, lease_s)
    return reap(redis)


def waiting(redis: Redis, priority: str = "interactive") -> list[str]:
    return make_queue(queue_name(priority, MODEL, "local"), redis).get_job_ids()


def left(redis: Redis) -> set[str]:
    """All keys but the one that RQ keeps for ever, the set of its queues' names."""
    return {key.decode() for key in redis.keys("*")} - {"rq:queues"}


def taken(by: ShardLeases) -> str | None:
    lease = by.take(QUEUES)
    return lease and lease.shard.job
