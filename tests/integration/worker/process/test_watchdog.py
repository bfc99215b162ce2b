"""The end of a worker whose step never ends."""

from __future__ import annotations

from redis import Redis

from tests.support.shards import QUEUES, post, shard
from worker.jobs.shard_queue import reap
from worker.process.shard_leases import ShardLeases
from worker.process.watchdog import HUNG_CHECKS, Watchdog


def test_a_worker_whose_step_never_ends_ends_itself_and_says_why(redis: Redis) -> None:
    exit_statuses: list[int] = []
    shards = ShardLeases(redis, QUEUES)
    watchdog = Watchdog(shards, exit_statuses.append)
    post(redis, shard("job"))
    lease = shards.take(QUEUES)
    for _ in range(2 * HUNG_CHECKS):
        watchdog.note_turn()
        watchdog.run_once()
    for _ in range(HUNG_CHECKS - 1):
        watchdog.run_once()
    assert not exit_statuses
    watchdog.run_once()
    assert exit_statuses == [1]
    assert reap(redis) == [("job-0", "requeued")]
    assert redis.hget(lease.job.key, "reason") == b"no step has ended for 120 s"
