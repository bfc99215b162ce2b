"""Leases of living workers: no outage and no clock takes them away, and none lasts for ever."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from tests.support.shards import QUEUES, lease_ends_at, post, shard, waiting, worker
from tests.support.valkey import OwnValkey
from worker.__main__ import connect
from worker.jobs.keys import LEASE_CLOCK, LEASES
from worker.jobs.shard_queue import MAX_LOSSES, reap
from worker.process.shard_leases import ShardLeases

LEASE_S = 60.0


def step_clock(redis: Redis, by_s: float) -> None:
    """Do what a step of the server's clock does to the leases: what it saw is `by_s` ago."""
    redis.hincrbyfloat(LEASE_CLOCK, "seen", -by_s)


def test_a_clock_that_steps_forward_takes_no_lease_away(redis: Redis) -> None:
    post(redis, *(shard(f"j{n}") for n in range(100)))
    holder = worker(redis)
    leases = [holder.take(QUEUES) for _ in range(100)]
    for by_s in (60, 600):
        step_clock(redis, by_s)
        assert reap(redis, LEASE_S) == []
        assert holder.heartbeat() == []
    assert {redis.hget(lease.execution.shard_key, "status") for lease in leases} == {b"started"}


@pytest.mark.parametrize("by_s", [0, -600, 600])
def test_a_dead_workers_leases_lapse_whatever_its_servers_clock_did(redis: Redis, by_s) -> None:
    post(redis, shard("a"))
    worker(redis).take(QUEUES)
    step_clock(redis, by_s)
    rounds = 0
    while not (reaped := reap(redis, LEASE_S)):
        step_clock(redis, LEASE_S / 5)  # a reaper's round, without the waiting
        rounds += 1
    assert reaped == [("a-0", "requeued")]
    assert 3 <= rounds <= 6


def test_a_time_of_leases_that_was_evicted_is_taken_from_the_last_heartbeat(redis: Redis) -> None:
    post(redis, shard("a"))
    holder = worker(redis)
    lease = holder.take(QUEUES)
    redis.delete(LEASE_CLOCK)
    an_hour_ago = time.time() - 3600
    redis.zadd(LEASES, {lease.execution.composite_key: an_hour_ago})
    assert reap(redis, LEASE_S) == []
    assert holder.heartbeat() == []
    assert lease_ends_at(redis, lease) == pytest.approx(an_hour_ago, abs=LEASE_S)


def test_the_time_of_leases_is_kept_only_while_there_are_any(redis: Redis) -> None:
    post(redis, shard("a"))
    holder = worker(redis)
    assert not redis.exists(LEASE_CLOCK)
    lease = holder.take(QUEUES)
    assert redis.exists(LEASE_CLOCK)
    holder.finish(lease)
    holder.heartbeat()
    reap(redis)
    assert not redis.exists(LEASE_CLOCK)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OwnValkey]:
    """A server that a test may kill; it has every write on its disk."""
    server = OwnValkey(tmp_path)
    server.start()
    yield server
    server.kill()


def test_a_server_killed_for_longer_than_a_lease_costs_its_workers_no_attempt(
    server: OwnValkey,
) -> None:
    """Whoever comes back first, reapers or workers."""
    lease_s = 0.5
    with connect(server.url) as redis:
        post(redis, *(shard(f"j{n:02}") for n in range(100)))
        holder = ShardLeases(redis, QUEUES, lease_s)
        holder.heartbeat()
        leases = [holder.take(QUEUES) for _ in range(100)]
        server.kill()
        time.sleep(3 * lease_s)
        server.start()
        assert [reap(redis, lease_s) for _ in range(2)] == [[], []]
        assert holder.heartbeat() == []
        assert waiting(redis) == []
        for lease in leases:
            counts = redis.hmget(lease.execution.shard_key, "retries_left", "number_of_retries")
            assert counts == [str(MAX_LOSSES).encode(), None]
