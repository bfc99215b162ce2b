"""RQ's own tools, which clean up by the clock of whoever calls them: they take nothing away."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from redis import Redis
from rq.registry import StartedJobRegistry, clean_registries
from rq.worker import BaseWorker

from tests.support.processes import ROOT
from tests.support.shards import QUEUES, post, shard, taken, waiting, worker
from worker.jobs.keys import (
    EXECUTION_PREFIX,
    EXECUTIONS_PREFIX,
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


@pytest.mark.parametrize("tool", [cleanup, clean_all, rq_info])
def test_tools_of_rq_take_no_lease_count_no_loss_and_requeue_nothing(
    redis: Redis, valkey_url: str, monkeypatch, tool: Callable[[Redis, str], object]
):
    monkeypatch.setattr("rq.registry.current_timestamp", lambda: int(time.time()) + AHEAD_S)
    post(redis, shard("a"), shard("b", "bulk"), shard("waits"))
    holder = worker(redis)
    leases = [holder.take(QUEUES), holder.take(QUEUES[1:])]
    before = {lease.job.key: redis.hgetall(lease.job.key) for lease in leases}
    for _ in range(10):
        tool(redis, valkey_url)
    assert reap(redis) == []
    assert holder.heartbeat() == []
    assert {lease.job.key: redis.hgetall(lease.job.key) for lease in leases} == before
    assert waiting(redis) == ["waits-0"]
    assert waiting(redis, "bulk") == []
    assert all(holder.finish(lease) for lease in leases)


def test_rq_info_shows_what_waits_and_what_runs(redis, valkey_url):
    post(redis, shard("a"), shard("b"), shard("c"))
    holder = worker(redis)
    lease = holder.take(QUEUES)
    shown = rq_info(redis, valkey_url)
    assert f"{lease.queue.name} " in shown
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
    assert (
        lease.queue.redis_queues_keys,
        lease.queue.redis_queue_namespace_prefix,
    ) == (QUEUE_NAMES, QUEUE_PREFIX)
    assert StartedJobRegistry(queue=lease.queue).key == STARTED_PREFIX + lease.queue.name
    assert lease.job.key == SHARD_PREFIX + lease.shard.id
    assert lease.execution.key == EXECUTION_PREFIX + lease.execution.composite_key
    assert lease.job.execution_registry.key == EXECUTIONS_PREFIX + lease.shard.id
