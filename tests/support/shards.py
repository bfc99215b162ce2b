"""Shards in RQ's queues, and workers that take them, without a network."""

from __future__ import annotations

from redis import Redis

from tests.support.jobs import enqueue_shards, make_recipe
from worker.jobs.domain import Priority, Shard, job_of
from worker.jobs.keys import COUNTS, LEASES, queue_name, rotation_name
from worker.jobs.shard_queue import make_queue, reap, sweep
from worker.process.shard_leases import Lease, ShardLeases

LEASE_S = 60.0  # no lease lapses unless a test calls `lapse`
MODEL = "of-these-tests"
QUEUES = [rotation_name(priority, MODEL) for priority in Priority]
RECIPE = make_recipe(model=MODEL, steps=10)


def shard(job: str, priority: str = "interactive", number: int = 0) -> Shard:
    """Return a shard of 64 images."""
    return Shard(job, number, 64 * number, 64, "local", priority, RECIPE)


post = enqueue_shards


def worker(redis: Redis) -> ShardLeases:
    """Return a worker that has signed on and holds nothing."""
    joined = ShardLeases(redis, QUEUES, LEASE_S)
    joined.heartbeat()
    return joined


def lapse(redis: Redis, *jobs: str) -> None:
    """Let the leases of these jobs' shards lapse, or all leases: nobody has heard of the worker."""
    for member in redis.zrange(LEASES, 0, -1):
        if not jobs or job_of(member.decode().partition(":")[0]) in jobs:
            redis.zadd(LEASES, {member: 0})


def lease_ends_at(redis: Redis, lease: Lease) -> float:
    """Return when a lease lapses, in seconds since the epoch."""
    return redis.zscore(LEASES, lease.execution.composite_key)


def reap_all(redis: Redis) -> list[tuple[str, str]]:
    """Do what the reaper does with lost shards."""
    sweep(redis, LEASE_S)
    return reap(redis)


def waiting(redis: Redis, priority: str = "interactive") -> list[str]:
    """Return the ids of the shards of one owner that wait, in their order."""
    return make_queue(queue_name(priority, MODEL, "local"), redis).get_job_ids()


def keys_left(redis: Redis) -> set[str]:
    """Return all keys but those that are kept for ever: names of RQ's queues, and counts."""
    return {key.decode() for key in redis.keys("*")} - {"rq:queues", COUNTS}


def taken(by: ShardLeases) -> str | None:
    """Take a shard, and return its job."""
    lease = by.take(QUEUES)
    return lease and lease.shard.job
