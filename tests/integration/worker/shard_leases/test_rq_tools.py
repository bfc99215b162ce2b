"""RQ's own tools, which clean up by the clock of whoever calls them: they take nothing away."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from redis import Redis
from rq.executions import Execution as RqExecution
from rq.job import Job
from rq.registry import StartedJobRegistry, clean_registries
from rq.worker import BaseWorker

from tests.support.processes import ROOT
from tests.support.shards import QUEUES, post, shard, taken, waiting, worker
from worker.jobs.keys import (
    FAILED_SHARDS,
    LEASES,
    QUEUE_PREFIX,
    SHARD_PREFIX,
    STARTED_PREFIX,
)
from worker.jobs.keys import (
    QUEUES as QUEUE_NAMES,
)
from worker.jobs.reaper import Reaper
from worker.jobs.shard_queue import make_queue, reap, shard_queues, sweep

AHEAD_S = 600
# `rq info`, on a host whose clock is ten minutes ahead.
_RQ_INFO = f"""
import sys, rq.registry, rq.utils
ahead = lambda: int(rq.utils.now().timestamp()) + {AHEAD_S}
rq.utils.current_timestamp = rq.registry.current_timestamp = ahead
from rq.cli import main
sys.exit(main(sys.argv[1:]))
"""


def rq_info(redis: Redis, url: str) -> str:
    command = [sys.executable, "-c", _RQ_INFO, "info", "--url", url]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return ended.stdout


def cleanup(redis: Redis, url: str) -> None:
    for queue in shard_queues(redis):
        StartedJobRegistry(queue=queue).cleanup(time.time() + AHEAD_S)


def clean_all(redis: Redis, url: str) -> None:
    for queue in shard_queues(redis):
        clean_registries(queue)
    for seen in BaseWorker.all(connection=redis, serializer="json"):
        for execution in seen.get_current_executions():
            assert execution.job_id


# The fourth time failed the jobs. `rq info` is a process each time.
@pytest.mark.parametrize(("tool", "times"), [(cleanup, 10), (clean_all, 10), (rq_info, 4)])
def test_tools_of_rq_take_no_lease_count_no_loss_and_requeue_nothing(
    redis: Redis, valkey_url: str, monkeypatch, tool: Callable[[Redis, str], object], times: int
):
    monkeypatch.setattr("rq.registry.current_timestamp", lambda: int(time.time()) + AHEAD_S)
    post(redis, shard("a"), shard("b", "bulk"), shard("waits"))
    holder = worker(redis)
    leases = [holder.take(QUEUES), holder.take(QUEUES[1:])]
    keys = [lease.execution.shard_key for lease in leases]
    before = [redis.hgetall(key) for key in keys]
    for _ in range(times):
        tool(redis, valkey_url)
    assert reap(redis) == []
    assert holder.heartbeat() == []
    assert [redis.hgetall(key) for key in keys] == before
    assert waiting(redis) == ["waits-0"]
    assert waiting(redis, "bulk") == []
    assert all(holder.finish(lease) for lease in leases)


def test_rq_info_shows_what_waits_and_what_runs(redis, valkey_url):
    post(redis, shard("a"), shard("b"), shard("c"))
    holder = worker(redis)
    lease = holder.take(QUEUES)
    shown = rq_info(redis, valkey_url)
    assert f"{lease.execution.queue} " in shown
    assert "2, 1 executing" in shown
    assert holder.name in shown


def test_an_entry_that_is_no_lease_strands_no_other(redis):
    post(redis, shard("a"))
    lease = worker(redis).take(QUEUES)
    redis.set(SHARD_PREFIX + "strange-0", "no hash")
    foreign = ["", "x", ":", "mail:1", "strange-0:" + "0" * 32]
    redis.zadd(LEASES, dict.fromkeys([*foreign, lease.execution.composite_key], 0))
    assert ("a-0", "requeued") in reap(redis)
    assert waiting(redis) == ["a-0"]
    assert not redis.exists(LEASES)


def test_a_failed_entry_that_is_no_shard_strands_no_other(redis):
    post(redis, shard("a"), shard("b"))
    lease = worker(redis).take(QUEUES)
    redis.set(SHARD_PREFIX + "Strange-0", "no hash")
    redis.sadd(FAILED_SHARDS, "", "Strange-0", "x", "a-0", lease.shard.id)
    Reaper(redis).run_once()
    assert not redis.exists(FAILED_SHARDS)
    assert waiting(redis) == ["b-0"]


def test_leases_of_before_they_had_a_key_of_their_own_are_reaped(redis):
    """A service that was upgraded while it stood still."""
    post(redis, shard("a"), shard("b"))
    holder = worker(redis)
    a, b = holder.take(QUEUES), holder.take(QUEUES)
    redis.delete(LEASES)
    started = STARTED_PREFIX + QUEUES[0]
    redis.sadd(QUEUE_NAMES, QUEUE_PREFIX + QUEUES[0])
    redis.zadd(started, {a.execution.composite_key: time.time() - 1})
    redis.zadd(started, {b.execution.composite_key: time.time() + 60})
    reaper = Reaper(redis)
    for _ in range(2):
        reaper.run_once()
    assert waiting(redis) == ["a-0"], "the other one's worker may live"
    assert redis.zrange(started, 0, -1) == [b.execution.composite_key.encode()]


def test_shards_that_rqs_own_worker_left_go_back(redis):
    post(redis, shard("a"))
    queue = make_queue(shard("a").queue, redis)
    redis.lmove(queue.key, queue.intermediate_queue_key)
    assert sweep(redis, 0) == []
    assert sweep(redis, 0) == ["a-0"]
    assert taken(worker(redis)) == "a"


def test_the_keys_of_rq_are_named_as_rq_names_them(redis):
    post(redis, shard("a"))
    lease = worker(redis).take(QUEUES)
    ours = lease.execution
    queue, job = make_queue(ours.queue, redis), Job(lease.shard.id, connection=redis)
    theirs = RqExecution(ours.id, lease.shard.id, redis, "a worker")
    assert (queue.redis_queues_keys, queue.redis_queue_namespace_prefix) == (
        QUEUE_NAMES,
        QUEUE_PREFIX,
    )
    assert ours.composite_key == theirs.composite_key
    assert ours.keys == {
        "started": StartedJobRegistry(queue=queue).key,
        "shard": job.key,
        "index": job.execution_registry.key,
        "execution": theirs.key,
    }
