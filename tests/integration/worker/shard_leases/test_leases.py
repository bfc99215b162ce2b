"""Shards in RQ's queues, on a real server: taken, kept alive, given back, rescued, withdrawn, and never left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from redis import Redis
from rq import Queue
from rq.worker import BaseWorker

from tests.support.processes import ROOT
from tests.support.shards import (
    LEASE_S,
    QUEUES,
    left,
    post,
    rescue,
    shard,
    taken,
    waiting,
    worker,
)
from worker.jobs.keys import LEASES
from worker.jobs.policy import UNFINISHED_TTL_S
from worker.jobs.reaper import Reaper
from worker.jobs.shard_queue import MAX_LOSSES, shard_queues, sweep, withdraw
from worker.process.shard_leases import BadShard, Lease, ShardLeases


def test_one_worker_holds_many_shards_the_interactive_ones_first(redis):
    post(redis, shard("bulk", "bulk"), shard("a"), shard("b"))
    w = worker(redis)
    assert [taken(w) for _ in range(4)] == ["a", "b", "bulk", None]
    seen = BaseWorker.all(connection=redis, serializer="json")[0].get_current_executions()
    assert {execution.job_id for execution in seen} == {"a-0", "b-0", "bulk-0"}


def test_a_shard_arrives_as_it_was_posted(redis):
    post(redis, shard("a", number=3))
    assert worker(redis).take(QUEUES).shard == shard("a", number=3)


def test_a_shard_that_nobody_ever_takes_goes_as_its_jobs_record_does(redis):
    post(redis, shard("a"), shard("b"))
    assert 0 < redis.ttl("rq:job:a-0") <= UNFINISHED_TTL_S
    redis.delete("rq:job:a-0")
    assert taken(worker(redis)) == "b"
    assert waiting(redis) == []


def test_only_the_first_shard_of_a_job_is_interactive(redis):
    post(redis, shard("a", number=0), shard("a", number=1))
    assert waiting(redis) == ["a-0"]
    assert waiting(redis, "bulk") == ["a-1"]


def test_a_queue_that_was_not_asked_for_is_left_alone(redis):
    post(redis, shard("bulk", "bulk"))
    assert worker(redis).take(QUEUES[:1]) is None
    assert waiting(redis, "bulk") == ["bulk-0"]


def test_beats_keep_a_lease_and_without_them_it_lapses(redis):
    post(redis, shard("a"), shard("b"))
    w = worker(redis, 0.5)
    a, b = w.take(QUEUES), w.take(QUEUES)
    for _ in range(5):
        time.sleep(0.2)
        assert w.heartbeat() == []
        assert rescue(redis, 0.5) == []
    time.sleep(0.6)
    assert set(rescue(redis, 0.5)) == {("a-0", "requeued"), ("b-0", "requeued")}
    assert waiting(redis) == ["a-0", "b-0"]
    assert w.heartbeat() == [a, b]


_HOLDS_TWO = """
import sys, time
from redis import Redis
from tests.support.shards import QUEUES, worker
w = worker(Redis.from_url(sys.argv[1]))
print(w.take(QUEUES).shard.job, w.take(QUEUES).shard.job, flush=True)
while True:
    w.heartbeat()
    time.sleep(0.2)
"""


@pytest.fixture
def doomed(valkey_url: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDS_TWO, valkey_url], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    with process:
        yield process
        process.kill()


def test_shards_of_a_killed_worker_go_back_to_the_front_and_nothing_of_it_stays(redis, request):
    post(redis, shard("a"), shard("b"), shard("c"))
    process = request.getfixturevalue("doomed")
    assert process.stdout.readline().split() == ["a", "b"]
    time.sleep(1.5 * LEASE_S)
    assert rescue(redis) == [], "it lives, and beats"
    process.kill()
    process.wait()
    rescued: list[tuple[str, str]] = []
    until = time.monotonic() + LEASE_S + 1
    while not rescued and time.monotonic() < until:
        rescued = rescue(redis)
        time.sleep(0.05)
    assert waiting(redis) == ["a-0", "b-0", "c-0"]
    w = worker(redis)
    for _ in range(3):
        assert w.finish(w.take(QUEUES))
    w.close()
    time.sleep(4 * LEASE_S)
    rescue(redis)
    assert left(redis) == set()


def test_several_rescuers_at_once_put_a_shard_back_once(redis, valkey_url):
    jobs = [f"j{i:02}" for i in range(20)]
    post(redis, *map(shard, jobs))
    w = worker(redis, 0.2)
    for _ in jobs:
        w.take(QUEUES)
    time.sleep(0.3)
    gate, rescued = threading.Barrier(4), []

    def run() -> None:
        with Redis.from_url(valkey_url) as client:
            gate.wait()
            rescued.extend(rescue(client))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(rescued) == len(jobs)
    assert waiting(redis) == [f"{job}-0" for job in jobs]


def test_shards_of_a_model_that_no_catalog_has_any_more_go_back_too_and_leave_nothing_when_their_job_is_deleted(
    redis,
):
    post(redis, shard("a"), shard("b"))
    lost = worker(redis)
    for _ in range(2):
        redis.zadd(LEASES, {lost.take(QUEUES).execution.composite_key: 0})
    assert withdraw("b-0", redis) == b"signalled"
    Reaper(redis, LEASE_S).run_once()
    assert waiting(redis) == ["a-0"]
    assert withdraw("a-0", redis) == b"removed"
    lost.close()
    assert not [key for key in left(redis) if "wip" in key or "rq:job" in key]


def test_other_applications_queues_are_left_alone(redis):
    Queue("mail", connection=redis).enqueue("x.y")
    post(redis, shard("a"))
    assert [queue.name for queue in shard_queues(redis)] == [shard("a").queue]


def test_a_worker_keeps_its_leases_while_the_server_is_full(redis):
    post(redis, shard("a"))
    w = worker(redis, lease_s=60)
    lease = w.take(QUEUES)
    redis.zadd(LEASES, {lease.execution.composite_key: time.time() + 1})
    redis.config_set("maxmemory", 1)
    try:
        assert w.heartbeat() == []
    finally:
        redis.config_set("maxmemory", 0)
    assert redis.zscore(LEASES, lease.execution.composite_key) > time.time() + 30


def test_a_late_worker_changes_nothing(redis):
    post(redis, shard("a"))
    late, other = worker(redis, 0.2), worker(redis)
    lease = late.take(QUEUES)
    time.sleep(0.3)
    rescue(redis, 0.2)
    second = other.take(QUEUES)
    assert not late.finish(lease)
    assert not late.give_back(lease)
    assert waiting(redis) == []
    assert other.finish(second)


def test_what_a_closing_worker_gives_back_keeps_its_order_and_is_no_loss(redis):
    post(redis, *map(shard, "abcd"))
    w = worker(redis)
    leases: list[Lease] = [w.take(QUEUES) for _ in range(3)]
    w.close()
    assert waiting(redis) == ["a-0", "b-0", "c-0", "d-0"]
    assert int(redis.hget(leases[0].job.key, "retries_left")) == MAX_LOSSES
    assert not redis.exists("rq:workers")


def test_a_finished_shard_leaves_no_key(redis):
    post(redis, shard("a"), shard("b", "bulk"))
    w = worker(redis)
    assert all(w.finish(w.take(QUEUES)) for _ in range(2))
    w.close()
    assert left(redis) == set()


def test_a_withdrawn_shard_is_not_taken(redis):
    post(redis, shard("a"), shard("b"))
    assert withdraw("a-0", redis) == b"removed"
    assert withdraw("a-0", redis) == b"absent"
    w = worker(redis)
    assert taken(w) == "b"


def test_a_shard_withdrawn_while_it_runs_is_told_to_its_worker_and_outlives_nobody(redis):
    post(redis, shard("told"), shard("closed"), shard("killed"))
    w = worker(redis, 0.3)
    told, _, _ = (w.take(QUEUES) for _ in range(3))
    assert withdraw("told-0", redis) == b"signalled"
    assert w.heartbeat() == [told]
    assert w.finish(told)
    withdraw("killed-0", redis)
    time.sleep(0.4)
    assert rescue(redis, 0.3) == [("closed-0", "requeued")]
    lease = w.take(QUEUES)
    withdraw("closed-0", redis)
    w.give_back(lease)
    w.close()
    assert left(redis) == set()


def test_a_shard_that_loses_every_worker_is_given_up(redis):
    post(redis, shard("a"))
    w, outcomes = worker(redis, 0.05), []
    for _ in range(MAX_LOSSES):
        w.take(QUEUES)
        time.sleep(0.1)
        outcomes += rescue(redis, 0.05)
    assert outcomes == [("a-0", "requeued")] * (MAX_LOSSES - 1) + [("a-0", "failed")]
    assert waiting(redis) == []


class _Bomb:
    def __reduce__(self):
        return (os.mkdir, ("exploded",))


def test_a_pickle_in_the_queue_is_removed_and_never_opened(redis, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Queue(QUEUES[0], connection=redis).enqueue(
        "x.y", job_id="evil", description="evil", kwargs={"x": _Bomb()}
    )
    sweep(redis)
    w = worker(redis)
    with pytest.raises(BadShard, match="evil") as bad:
        w.take(QUEUES)
    bad.value.discard()
    assert list(tmp_path.iterdir()) == []
    w.close()
    assert left(redis) == set()


def test_a_worker_that_was_stopped_past_its_lease_comes_back(redis):
    post(redis, shard("a"))
    w = worker(redis, 0.5)
    time.sleep(1.2)
    rescue(redis, 0.5)
    assert not redis.exists(w.key, "rq:workers")
    w.heartbeat()
    assert redis.scard("rq:workers") == 1


def test_the_workers_connection_keeps_its_short_timeout(valkey_url):
    with Redis.from_url(valkey_url, socket_timeout=2) as client:
        ShardLeases(client, QUEUES)
        assert client.connection_pool.connection_kwargs["socket_timeout"] == 2
