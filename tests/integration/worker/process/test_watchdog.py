"""The end of a worker whose step never ends."""

from __future__ import annotations

import pytest
from redis import Redis

from tests.support.shards import QUEUES, post, shard
from worker.jobs.shard_queue import reap
from worker.process.shard_leases import ShardLeases
from worker.process.watchdog import CHECK_EVERY_S, HUNG_S, STOP_S, Watchdog


def test_a_worker_whose_step_never_ends_ends_itself_and_says_why(redis: Redis) -> None:
    exit_statuses: list[int] = []
    shards = ShardLeases(redis, QUEUES)
    watchdog = Watchdog(shards, exit_statuses.append)
    post(redis, shard("job"))
    lease = shards.take(QUEUES)
    checks = round(HUNG_S / CHECK_EVERY_S)
    for _ in range(2 * checks):
        watchdog.note_turn()
        watchdog.run_once()
    for _ in range(checks - 1):
        watchdog.run_once()
    assert not exit_statuses
    watchdog.run_once()
    assert exit_statuses == [1]
    assert reap(redis) == [("job-0", "requeued")]
    assert redis.hget(lease.execution.shard_key, "reason") == b"no step has ended for 120 s"


def checks_until_the_end(redis: Redis, step_s: float, stops: bool) -> int:
    exit_statuses: list[int] = []
    watchdog = Watchdog(ShardLeases(redis, QUEUES), exit_statuses.append, lambda: step_s)
    watchdog.note_turn()
    if stops:
        watchdog.note_stop()
    watchdog.run_once()
    checks = 0
    while not exit_statuses:
        watchdog.run_once()
        checks += 1
    return checks


@pytest.mark.parametrize(("stops", "allowed_s"), [(False, HUNG_S), (True, STOP_S)])
def test_a_worker_with_long_steps_is_given_ten_of_them_more(
    redis: Redis, stops: bool, allowed_s: float
) -> None:
    assert checks_until_the_end(redis, 0.0, stops) == -(-allowed_s // CHECK_EVERY_S)
    assert checks_until_the_end(redis, 30.0, stops) == -(-(allowed_s + 300) // CHECK_EVERY_S)
