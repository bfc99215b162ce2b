"""Shards on a real server: taken, kept alive, given back, reaped, withdrawn, never left behind."""

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

from tests.support.processes import ROOT, eventually
from tests.support.shards import (
    LEASE_S,
    QUEUES,
    keys_left,
    lapse,
    lease_ends_at,
    post,
    reap_all,
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


def test_one_worker_holds_many_shards_the_interactive_ones_first(redis: Redis) -> None:
    post(redis, shard("bulk", "bulk"), shard("a"), shard("b"))
    leases = worker(redis)
    assert [taken(leases) for _ in range(4)] == ["a", "b", "bulk", None]
    seen = BaseWorker.all(connection=redis, serializer="json")[0].get_current_executions()
    assert {execution.job_id for execution in seen} == {"a-0", "b-0", "bulk-0"}


def test_a_shard_arrives_as_it_was_posted(redis: Redis) -> None:
    post(redis, shard("a", number=3))
    assert worker(redis).take(QUEUES).shard == shard("a", number=3)


def test_a_shard_that_nobody_takes_expires_as_its_jobs_record_does(redis: Redis) -> None:
    post(redis, shard("a"), shard("b"))
    assert 0 < redis.ttl("rq:job:a-0") <= UNFINISHED_TTL_S
    redis.delete("rq:job:a-0")
    assert taken(worker(redis)) == "b"
    assert waiting(redis) == []


def test_only_the_first_shard_of_a_job_is_interactive(redis: Redis) -> None:
    post(redis, shard("a", number=0), shard("a", number=1))
    assert waiting(redis) == ["a-0"]
    assert waiting(redis, "bulk") == ["a-1"]


def test_a_take_leaves_queues_alone_that_are_not_wanted(redis: Redis) -> None:
    post(redis, shard("bulk", "bulk"))
    assert worker(redis).take(QUEUES[:1]) is None
    assert waiting(redis, "bulk") == ["bulk-0"]


def test_a_heartbeat_extends_leases_which_lapse_without_it(redis: Redis) -> None:
    post(redis, shard("a"), shard("b"))
    leases = worker(redis)
    a, b = leases.take(QUEUES), leases.take(QUEUES)
    for lease in (a, b):
        redis.zadd(LEASES, {lease.execution.composite_key: time.time() + 5})
    assert leases.heartbeat() == []
    assert min(lease_ends_at(redis, lease) for lease in (a, b)) > time.time() + LEASE_S / 2
    assert reap_all(redis) == []
    lapse(redis)
    assert set(reap_all(redis)) == {("a-0", "requeued"), ("b-0", "requeued")}
    assert waiting(redis) == ["a-0", "b-0"]
    assert leases.heartbeat() == [a, b]


_HOLDS_TWO = """
import sys, time
from redis import Redis
from tests.support.shards import QUEUES, worker
leases = worker(Redis.from_url(sys.argv[1]))
print(leases.take(QUEUES).shard.job, leases.take(QUEUES).shard.job, flush=True)
while True:
    leases.heartbeat()
    time.sleep(0.05)
"""


@pytest.fixture
def doomed(redis: Redis, valkey_url: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds two of three shards, and sends heartbeats."""
    post(redis, shard("a"), shard("b"), shard("c"))
    command = [sys.executable, "-c", _HOLDS_TWO, valkey_url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        yield process
        process.kill()


def test_shards_of_a_killed_worker_go_back_to_the_front_and_leave_no_key(
    redis: Redis, doomed: subprocess.Popen[str]
) -> None:
    assert doomed.stdout.readline().split() == ["a", "b"]
    for member in redis.zrange(LEASES, 0, -1):
        redis.zadd(LEASES, {member: time.time() + LEASE_S / 2})
    extended = lambda: redis.zcount(LEASES, time.time() + LEASE_S * 3 / 4, "+inf")  # noqa: E731
    eventually(lambda: extended() == 2, 20, "a heartbeat has extended both leases")
    assert reap_all(redis) == []
    doomed.kill()
    doomed.wait()
    lapse(redis)
    assert set(reap_all(redis)) == {("a-0", "requeued"), ("b-0", "requeued")}
    assert waiting(redis) == ["a-0", "b-0", "c-0"]
    leases = worker(redis)
    for _ in range(3):
        assert leases.finish(leases.take(QUEUES))
    leases.close()
    lasting = {key for key in keys_left(redis) if redis.ttl(key) < 0}
    assert not [key for key in lasting if not key.startswith("rq:workers")]
    redis.delete(*(keys_left(redis) - lasting))  # as if they had expired
    reap_all(redis)
    assert keys_left(redis) == set()


def test_several_reapers_at_once_put_a_shard_back_once(redis: Redis, valkey_url: str) -> None:
    jobs = [f"j{i:02}" for i in range(20)]
    post(redis, *map(shard, jobs))
    leases = worker(redis)
    for _ in jobs:
        leases.take(QUEUES)
    lapse(redis)
    gate = threading.Barrier(4)
    reaped: list[tuple[str, str]] = []

    def run() -> None:
        with Redis.from_url(valkey_url) as client:
            gate.wait()
            reaped.extend(reap_all(client))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reaped) == len(jobs)
    assert waiting(redis) == [f"{job}-0" for job in jobs]


def test_shards_of_a_model_that_no_catalog_has_are_reaped_too(redis: Redis) -> None:
    post(redis, shard("a"), shard("b"))
    lost = worker(redis)
    for _ in range(2):
        lost.take(QUEUES)
    lapse(redis)
    assert withdraw("b-0", redis) == b"signalled"
    Reaper(redis, LEASE_S).run_once()
    assert waiting(redis) == ["a-0"]
    assert withdraw("a-0", redis) == b"removed"
    lost.close()
    assert not [key for key in keys_left(redis) if "wip" in key or "rq:job" in key]


def test_queues_of_other_applications_are_left_alone(redis: Redis) -> None:
    Queue("mail", connection=redis).enqueue("x.y")
    post(redis, shard("a"))
    assert [queue.name for queue in shard_queues(redis)] == [shard("a").queue]


def test_a_worker_keeps_its_leases_while_the_server_is_full(redis: Redis) -> None:
    post(redis, shard("a"))
    leases = worker(redis)
    lease = leases.take(QUEUES)
    redis.zadd(LEASES, {lease.execution.composite_key: time.time() + 1})
    redis.config_set("maxmemory", 1)
    try:
        assert leases.heartbeat() == []
    finally:
        redis.config_set("maxmemory", 0)
    assert lease_ends_at(redis, lease) > time.time() + LEASE_S / 2


def test_a_late_worker_changes_nothing(redis: Redis) -> None:
    post(redis, shard("a"))
    late, other = worker(redis), worker(redis)
    lease = late.take(QUEUES)
    lapse(redis)
    reap_all(redis)
    second = other.take(QUEUES)
    assert not late.finish(lease)
    assert not late.give_back(lease)
    assert waiting(redis) == []
    assert other.finish(second)


def test_a_closing_worker_gives_shards_back_in_their_order_and_without_a_loss(
    redis: Redis,
) -> None:
    post(redis, *map(shard, "abcd"))
    leases = worker(redis)
    given_back: list[Lease] = [leases.take(QUEUES) for _ in range(3)]
    leases.close()
    assert waiting(redis) == ["a-0", "b-0", "c-0", "d-0"]
    assert int(redis.hget(given_back[0].execution.shard_key, "retries_left")) == MAX_LOSSES
    assert not redis.exists("rq:workers")


def test_a_finished_shard_leaves_no_key(redis: Redis) -> None:
    post(redis, shard("a"), shard("b", "bulk"))
    leases = worker(redis)
    assert all(leases.finish(leases.take(QUEUES)) for _ in range(2))
    leases.close()
    assert keys_left(redis) == set()


def test_a_withdrawn_shard_is_not_taken(redis: Redis) -> None:
    post(redis, shard("a"), shard("b"))
    assert withdraw("a-0", redis) == b"removed"
    assert withdraw("a-0", redis) == b"absent"
    assert taken(worker(redis)) == "b"


def test_a_shard_withdrawn_while_it_runs_is_signalled_and_leaves_no_key(redis: Redis) -> None:
    post(redis, shard("signalled"), shard("closed"), shard("killed"))
    leases = worker(redis)
    signalled, _, _ = (leases.take(QUEUES) for _ in range(3))
    assert withdraw("signalled-0", redis) == b"signalled"
    assert leases.heartbeat() == [signalled]
    assert leases.finish(signalled)
    withdraw("killed-0", redis)
    lapse(redis)
    assert reap_all(redis) == [("closed-0", "requeued")]
    lease = leases.take(QUEUES)
    withdraw("closed-0", redis)
    leases.give_back(lease)
    leases.close()
    assert keys_left(redis) == set()


def test_a_shard_that_loses_every_worker_fails(redis: Redis) -> None:
    post(redis, shard("a"))
    leases, outcomes = worker(redis), []
    for _ in range(MAX_LOSSES):
        leases.take(QUEUES)
        lapse(redis)
        outcomes += reap_all(redis)
    assert outcomes == [("a-0", "requeued")] * (MAX_LOSSES - 1) + [("a-0", "failed")]
    assert waiting(redis) == []


class _Bomb:
    def __reduce__(self):
        return (os.mkdir, ("exploded",))


def test_a_pickle_in_the_queue_is_removed_and_never_opened(
    redis: Redis, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Queue(QUEUES[0], connection=redis).enqueue(
        "x.y", job_id="evil", description="evil", kwargs={"x": _Bomb()}
    )
    sweep(redis)
    leases = worker(redis)
    with pytest.raises(BadShard, match="evil") as bad:
        leases.take(QUEUES)
    bad.value.discard()
    assert list(tmp_path.iterdir()) == []
    leases.close()
    assert keys_left(redis) == set()


def test_a_worker_that_was_stopped_past_its_lease_signs_on_again(redis: Redis) -> None:
    leases = worker(redis)
    assert 0 < redis.ttl(leases.key) <= LEASE_S
    redis.delete(leases.key)  # as if it had expired
    post(redis, shard("a"))
    reap_all(redis)
    assert not redis.exists(leases.key, "rq:workers")
    leases.heartbeat()
    assert redis.scard("rq:workers") == 1


def test_the_connection_of_a_worker_keeps_its_short_timeout(valkey_url: str) -> None:
    with Redis.from_url(valkey_url, socket_timeout=2) as client:
        ShardLeases(client, QUEUES)
        assert client.connection_pool.connection_kwargs["socket_timeout"] == 2
