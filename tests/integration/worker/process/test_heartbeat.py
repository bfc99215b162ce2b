"""What a worker says of itself, and what it makes of what others say."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from itertools import count
from threading import Event

import httpx
import pytest
from redis import Redis
from redis.exceptions import OutOfMemoryError

from tests.support.shards import QUEUES, post, shard
from tests.support.worker import say
from worker.jobs.domain import Precision
from worker.jobs.keys import WORKERS
from worker.jobs.shard_queue import reap
from worker.jobs.worker_registry import READ_WORKERS, ModelInfo, WorkerInfo, parse_workers
from worker.process.heartbeat import HUNG_HEARTBEATS, Heartbeat
from worker.process.messages import MessageQueue
from worker.process.shard_leases import ShardLeases


def info(
    name: str, precision: Precision = "fp32", device: str = "cpu", kernels: str = "pytorch"
) -> WorkerInfo:
    return WorkerInfo(name, device, {"tiny": ModelInfo(precision, kernels, 1, {1: 0.1})}, 1.0)


def living(redis: Redis) -> list[bytes]:
    return READ_WORKERS.call(redis, workers=WORKERS)


@pytest.fixture
def upkeep(redis: Redis) -> Heartbeat:
    """Of a worker that runs `tiny` in fp32 on a CPU, and waits for nothing between its turns."""
    stopping = Event()
    stopping.set()
    return Heartbeat(
        redis,
        ShardLeases(redis, QUEUES),
        MessageQueue(),
        lambda: info("mine"),
        count().__next__,
        stopping,
    )


def test_a_worker_that_is_gone_is_not_among_the_living_and_is_forgotten(
    redis: Redis, upkeep: Heartbeat
) -> None:
    say(redis, info("alive"))
    say(redis, info("dead"), lives_s=-1)
    assert parse_workers(living(redis)) == [info("alive")]
    upkeep.run_once()
    assert set(redis.hkeys(WORKERS)) == {b"alive", b"mine"}


def test_a_worker_whose_step_never_ends_ends_itself_and_says_so(
    redis: Redis, upkeep: Heartbeat, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr("os._exit", ended.append)
    post(redis, shard("job"))
    lease = upkeep._shards.take(QUEUES)
    for _ in range(2 * HUNG_HEARTBEATS):
        upkeep.run_once()
    assert not ended, "its loop turns"
    upkeep._turns = lambda: 7
    for _ in range(HUNG_HEARTBEATS):
        upkeep.run_once()
    assert not ended
    upkeep.run_once()
    assert ended == [1]
    assert reap([lease.queue]) == [("job-0", "requeued")]
    assert redis.hget(lease.job.key, "reason") == b"no step has ended for 120 s"


def test_no_heartbeat_waits_for_a_rescue(
    redis: Redis, upkeep: Heartbeat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        upkeep._rescue,
        "turn",
        lambda: pytest.fail("where Redis is slow it takes longer than a lease"),
    )
    upkeep.run_once()
    assert parse_workers(living(redis)) == [info("mine")]


def test_whether_a_worker_lives_is_a_matter_of_the_servers_clock(
    redis: Redis, upkeep: Heartbeat, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(redis, info("other"))
    for skew_s in (-3600, 3600):
        with monkeypatch.context() as patch:
            now = time.time() + skew_s
            patch.setattr(time, "time", lambda now=now: now)
            upkeep.run_once()
        assert parse_workers(living(redis)) == [info("mine"), info("other")]


def test_a_worker_stays_known_while_the_server_is_full(redis: Redis, upkeep: Heartbeat) -> None:
    redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(OutOfMemoryError):
            redis.hset("anything", "else", 1)
        upkeep._introduce()
        assert parse_workers(living(redis)) == [info("mine")]
    finally:
        redis.config_set("maxmemory", 0)


@pytest.mark.parametrize("missing", ["slowed", "models", "everything"])
def test_workers_of_another_version_are_not_counted_and_harm_nobody(
    redis: Redis, api: httpx.Client, caplog: pytest.LogCaptureFixture, missing: str
) -> None:
    fields = {
        name: value
        for name, value in json.loads(info("newer").to_json()).items()
        if missing not in (name, "everything")
    }
    say(redis, info("mine"))
    redis.hset(WORKERS, "newer", f"{time.time() + 60} {json.dumps(fields)}")
    assert [worker["name"] for worker in api.get("/readyz").json()["workers"]] == ["mine"]
    assert api.post("/v1/jobs", json={"model": "tiny"}).json()["queue"]["eta_s"] is not None
    assert "a worker of another version is not counted" in caplog.text


def test_what_a_newer_worker_says_besides_is_overlooked(redis: Redis, api: httpx.Client) -> None:
    redis.hset(
        WORKERS,
        "newer",
        f"{time.time() + 60} {json.dumps(json.loads(info('newer').to_json()) | {'host': 'gpu-2'})}",
    )
    assert [worker["name"] for worker in api.get("/readyz").json()["workers"]] == ["newer"]


@pytest.mark.parametrize(
    ("other", "there"),
    [
        (info("other", precision="bf16"), "bf16 on cpu by pytorch"),
        (info("other", device="cuda:1"), "fp32 on cuda by pytorch"),
        (info("other", kernels="others"), "fp32 on cpu by others"),
    ],
)
def test_a_worker_that_computes_otherwise_is_told_of_once(
    redis: Redis, upkeep: Heartbeat, caplog: pytest.LogCaptureFixture, other: WorkerInfo, there: str
) -> None:
    say(redis, other)
    for _ in range(3):
        upkeep.run_once()
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith(
        f"worker other runs tiny in {there}, this one in fp32 on cpu by pytorch: "
    )
    assert "DDPM_PRECISION" in told


def test_workers_that_compute_alike_say_nothing(
    redis: Redis, upkeep: Heartbeat, caplog: pytest.LogCaptureFixture
) -> None:
    say(redis, info("other"))
    say(
        redis,
        replace(
            info("for another model"), models={"large": ModelInfo("bf16", "pytorch", 1, {1: 0.1})}
        ),
    )
    upkeep.run_once()
    assert not caplog.records
