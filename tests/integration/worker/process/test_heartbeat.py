"""Heartbeats: what a worker says of itself, and how it compares itself with others."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from redis import Redis
from redis.exceptions import ConnectionError, OutOfMemoryError

from tests.support.shards import QUEUES, post, shard
from tests.support.worker import publish_info
from worker.jobs.domain import Precision
from worker.jobs.keys import LEASES, WORKERS
from worker.jobs.worker_registry import READ_WORKERS, ModelInfo, WorkerInfo, parse_workers
from worker.process.heartbeat import Heartbeat
from worker.process.messages import MessageQueue
from worker.process.shard_leases import ShardLeases


def info(
    name: str, precision: Precision = "fp32", device: str = "cpu", kernels: str = "pytorch"
) -> WorkerInfo:
    return WorkerInfo(name, device, {"tiny": ModelInfo(precision, kernels, 1, {1: 0.1})}, 1.0)


def living(redis: Redis) -> list[bytes]:
    return READ_WORKERS.call(redis, workers=WORKERS)


@pytest.fixture
def shards(redis: Redis) -> ShardLeases:
    return ShardLeases(redis, QUEUES)


@pytest.fixture
def heartbeat(redis: Redis, shards: ShardLeases) -> Heartbeat:
    """The heartbeat of a worker that runs `tiny` in fp32 on a CPU."""
    return Heartbeat(redis, shards, MessageQueue(), lambda: info("mine"))


def test_a_worker_that_is_gone_is_not_among_the_living_and_is_forgotten(
    redis: Redis, heartbeat: Heartbeat
) -> None:
    publish_info(redis, info("alive"))
    publish_info(redis, info("dead"), lives_s=-1)
    assert parse_workers(living(redis)) == [info("alive")]
    heartbeat.run_once()
    assert set(redis.hkeys(WORKERS)) == {b"alive", b"mine"}


def test_a_heartbeat_reaps_no_shards_of_other_workers(redis: Redis, heartbeat: Heartbeat) -> None:
    """Reaping takes longer than a lease where Redis is slow."""
    post(redis, shard("job"))
    lease = ShardLeases(redis, QUEUES).take(QUEUES)
    redis.zadd(LEASES, {lease.execution.composite_key: 0})
    heartbeat.run_once()
    assert redis.zscore(LEASES, lease.execution.composite_key) == 0
    assert parse_workers(living(redis)) == [info("mine")]


def test_the_servers_clock_decides_whether_a_worker_lives(
    redis: Redis, heartbeat: Heartbeat, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_info(redis, info("other"))
    for skew_s in (-3600, 3600):
        with monkeypatch.context() as patch:
            now = time.time() + skew_s
            patch.setattr(time, "time", lambda now=now: now)
            heartbeat.run_once()
        assert parse_workers(living(redis)) == [info("mine"), info("other")]


def test_a_heartbeat_touches_its_file_only_when_redis_has_taken_it(
    redis: Redis, shards: ShardLeases, tmp_path: Path
) -> None:
    file = tmp_path / "heartbeat"
    Heartbeat(redis, shards, MessageQueue(), lambda: info("mine"), file).run_once()
    os.utime(file, (0, 0))
    away = Redis(port=9)
    lost = Heartbeat(away, ShardLeases(away, QUEUES), MessageQueue(), lambda: info("mine"), file)
    with pytest.raises(ConnectionError):
        lost.run_once()
    assert file.stat().st_mtime == 0


def test_a_heartbeats_file_that_cannot_be_written_is_named_once_in_the_log(
    redis: Redis, shards: ShardLeases, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "missing" / "heartbeat"
    heartbeat = Heartbeat(redis, shards, MessageQueue(), lambda: info("mine"), file)
    for _ in range(2):
        heartbeat.run_once()
    (warning,) = [record.getMessage() for record in caplog.records]
    assert f"DDPM_HEARTBEAT_FILE={file} cannot be written" in warning


def test_a_worker_stays_known_while_the_server_is_full(redis: Redis, heartbeat: Heartbeat) -> None:
    redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(OutOfMemoryError):
            redis.hset("anything", "else", 1)
        heartbeat.announce()
        assert parse_workers(living(redis)) == [info("mine")]
    finally:
        redis.config_set("maxmemory", 0)


@pytest.mark.parametrize("missing", ["slowed", "models", "everything"])
def test_workers_of_another_version_are_not_counted_and_harm_nobody(
    redis: Redis, api: httpx.Client, caplog: pytest.LogCaptureFixture, missing: str
) -> None:
    fields = {} if missing == "everything" else json.loads(info("newer").to_json())
    fields.pop(missing, None)
    publish_info(redis, info("mine"))
    redis.hset(WORKERS, "newer", f"{time.time() + 60} {json.dumps(fields)}")
    assert [worker["name"] for worker in api.get("/readyz").json()["workers"]] == ["mine"]
    assert api.post("/v1/jobs", json={"model": "tiny"}).json()["queue"]["eta_s"] is not None
    assert "a worker of another version is not counted" in caplog.text


def test_a_field_that_only_a_newer_worker_knows_is_overlooked(
    redis: Redis, api: httpx.Client
) -> None:
    fields = json.loads(info("newer").to_json()) | {"host": "gpu-2"}
    redis.hset(WORKERS, "newer", f"{time.time() + 60} {json.dumps(fields)}")
    assert [worker["name"] for worker in api.get("/readyz").json()["workers"]] == ["newer"]


@pytest.mark.parametrize(
    ("other", "there"),
    [
        (info("other", precision="bf16"), "bf16 on cpu by pytorch"),
        (info("other", device="cuda:1"), "fp32 on cuda by pytorch"),
        (info("other", kernels="others"), "fp32 on cpu by others"),
    ],
)
def test_a_worker_that_computes_differently_is_reported_once(
    redis: Redis,
    heartbeat: Heartbeat,
    caplog: pytest.LogCaptureFixture,
    other: WorkerInfo,
    there: str,
) -> None:
    publish_info(redis, other)
    for _ in range(3):
        heartbeat.run_once()
    (warning,) = [record.getMessage() for record in caplog.records]
    difference = f"worker other runs tiny in {there}, this one in fp32 on cpu by pytorch: "
    assert warning.startswith(difference)
    assert "DDPM_PRECISION" in warning


def test_workers_that_compute_alike_are_not_reported(
    redis: Redis, heartbeat: Heartbeat, caplog: pytest.LogCaptureFixture
) -> None:
    publish_info(redis, info("other"))
    large = {"large": ModelInfo("bf16", "pytorch", 1, {1: 0.1})}
    publish_info(redis, replace(info("of another model"), models=large))
    heartbeat.run_once()
    assert not caplog.records
