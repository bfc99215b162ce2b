"""Which losses of workers count against a shard: those that got no further than the ones before them."""

from __future__ import annotations

import pytest
from redis import Redis

from tests.support.shards import QUEUES, post, shard, worker
from worker.jobs.keys import LEASES, job_key
from worker.jobs.shard_queue import MAX_LOSSES, reap
from worker.process.shard_leases import Lease

SHARD = shard("a" * 32, number=0)


def lose(redis: Redis, *, reached: int = 0, kept: int = 0) -> tuple[Lease, list[str]]:
    """A worker takes the shard, gets so far and is lost; what the reaper made of it."""
    lease = worker(redis).take(QUEUES)
    assert lease, "the shard has been given up"
    redis.hset(job_key(SHARD.job), mapping={"p0": f"0,{reached}", "k0": kept})
    redis.zadd(LEASES, {lease.execution.composite_key: 0})
    return lease, [outcome for _, outcome in reap(redis)]


def test_a_job_that_loses_ten_workers_and_gets_further_with_each_is_never_given_up(redis):
    post(redis, SHARD)
    for attempt in range(1, 11):
        lease, outcome = lose(redis, reached=100 * attempt)
        assert (lease.attempt, outcome) == (attempt, ["requeued"])


def test_a_shard_that_is_lost_three_times_at_the_same_step_is_given_up(redis):
    post(redis, SHARD)
    outcomes = [lose(redis, reached=640)[1] for _ in range(1 + MAX_LOSSES)]
    assert outcomes == [["requeued"]] * MAX_LOSSES + [["failed"]]


def test_a_worker_that_repeats_what_was_done_before_has_made_no_progress(redis):
    post(redis, SHARD)
    lose(redis, reached=640)
    outcomes = [lose(redis, reached=reached)[1] for reached in (500, 600, 640)]
    assert outcomes[-1] == ["failed"]


@pytest.mark.parametrize("losses", [1, MAX_LOSSES - 1])
def test_progress_forgives_the_losses_before_it(redis, losses):
    post(redis, SHARD)
    for reached in (64, 65):
        for _ in range(1 + losses):
            assert lose(redis, reached=reached)[1] == ["requeued"]
    assert worker(redis).take(QUEUES).job.retries_left == MAX_LOSSES - losses


def test_a_worker_that_saved_more_than_it_found_is_not_counted_but_does_not_clear_the_shard_either(
    redis,
):
    post(redis, SHARD)
    for kept in (0, 10, 20, 30, 30):
        lose(redis, reached=64, kept=kept)
    assert worker(redis).take(QUEUES).job.retries_left == MAX_LOSSES - 1


def test_what_is_saved_beyond_the_last_report_was_reached(redis):
    post(redis, SHARD)
    lose(redis, reached=64, kept=70)
    assert worker(redis).take(QUEUES).reached == 70
