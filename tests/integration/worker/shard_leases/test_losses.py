"""Which losses of workers count against a shard: those that got no further than any before."""

from __future__ import annotations

import pytest
from redis import Redis

from tests.support.shards import QUEUES, lapse, post, reap_all, shard, worker
from worker.jobs.keys import job_key
from worker.jobs.shard_queue import MAX_LOSSES
from worker.process.shard_leases import Lease

SHARD = shard("a" * 32, number=0)


def lose(redis: Redis, *, reached: int = 0, saved: int = 0) -> tuple[Lease, list[str]]:
    """Let a worker take the shard, get so far and be lost.

    Returns:
        Its lease, and what the reaper did.
    """
    lease = worker(redis).take(QUEUES)
    assert lease, "the shard has failed"
    redis.hset(job_key(SHARD.job), mapping={"p0": f"0,{reached}", "k0": saved})
    lapse(redis)
    return lease, [outcome for _, outcome in reap_all(redis)]


def test_a_shard_that_gets_further_with_each_of_ten_workers_never_fails(redis: Redis) -> None:
    post(redis, SHARD)
    for attempt in range(1, 11):
        lease, outcome = lose(redis, reached=100 * attempt)
        assert (lease.attempt, outcome) == (attempt, ["requeued"])


def test_a_shard_that_is_lost_three_times_at_the_same_step_fails(redis: Redis) -> None:
    post(redis, SHARD)
    outcomes = [lose(redis, reached=640)[1] for _ in range(1 + MAX_LOSSES)]
    assert outcomes == [["requeued"]] * MAX_LOSSES + [["failed"]]


def test_a_worker_that_repeats_what_was_done_has_made_no_progress(redis: Redis) -> None:
    post(redis, SHARD)
    lose(redis, reached=640)
    outcomes = [lose(redis, reached=reached)[1] for reached in (500, 600, 640)]
    assert outcomes[-1] == ["failed"]


@pytest.mark.parametrize("losses", [1, MAX_LOSSES - 1])
def test_progress_forgives_the_losses_before_it(redis: Redis, losses: int) -> None:
    post(redis, SHARD)
    for reached in (64, 65):
        for _ in range(1 + losses):
            assert lose(redis, reached=reached)[1] == ["requeued"]
    assert worker(redis).take(QUEUES).retries_left == MAX_LOSSES - losses


def test_a_worker_that_saved_more_is_neither_counted_nor_forgiven(redis: Redis) -> None:
    post(redis, SHARD)
    for saved in (0, 10, 20, 30, 30):
        lose(redis, reached=64, saved=saved)
    assert worker(redis).take(QUEUES).retries_left == MAX_LOSSES - 1


def test_image_steps_that_were_saved_after_the_last_report_count_as_reached(redis: Redis) -> None:
    post(redis, SHARD)
    lose(redis, reached=64, saved=70)
    assert worker(redis).take(QUEUES).reached == 70
