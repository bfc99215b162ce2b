"""What a worker says of itself, and what it makes of what others say."""

from __future__ import annotations

import time
from dataclasses import replace
from threading import Event

import pytest
from redis import Redis

from tests.support.shards import QUEUES
from worker import contract
from worker.contract import Precision
from worker.info import ServedModel, WorkerInfo
from worker.intake import Inbox
from worker.rq_worker import ShardWorker
from worker.upkeep import Upkeep


def info(name: str, precision: Precision = "fp32", device: str = "cpu", lives_s: float = 60) -> WorkerInfo:
    return WorkerInfo(name, device, {"tiny": ServedModel(precision, 1, {1: 0.1})}, 1.0, time.time() + lives_s)


def say(redis: Redis, said: WorkerInfo) -> None:
    redis.hset(contract.WORKERS, said.name, said.to_json())


@pytest.fixture
def upkeep(redis: Redis) -> Upkeep:
    """Of a worker that runs `tiny` in fp32 on a CPU, and waits for nothing between its turns."""
    stopping = Event()
    stopping.set()
    return Upkeep(redis, ShardWorker(redis, QUEUES), Inbox(), lambda: info("mine"), stopping)


def test_a_worker_that_is_gone_is_forgotten(redis: Redis, upkeep: Upkeep) -> None:
    say(redis, info("alive"))
    say(redis, info("dead", lives_s=-1))
    upkeep.turn()
    assert set(redis.hkeys(contract.WORKERS)) == {b"alive", b"mine"}


@pytest.mark.parametrize(("precision", "device", "there"), [("bf16", "cpu", "bf16 on cpu"), ("fp32", "cuda:1", "fp32 on cuda")])
def test_a_worker_that_computes_otherwise_is_told_of_once(
    redis: Redis, upkeep: Upkeep, caplog: pytest.LogCaptureFixture, precision: Precision, device: str, there: str
) -> None:
    say(redis, info("other", precision, device))
    for _ in range(3):
        upkeep.turn()
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith(f"worker other runs tiny in {there}, this one in fp32 on cpu: ")
    assert "DDPM_PRECISION" in told


def test_workers_that_compute_alike_say_nothing(redis: Redis, upkeep: Upkeep, caplog: pytest.LogCaptureFixture) -> None:
    say(redis, info("other"))
    say(redis, replace(info("for another model"), models={"large": ServedModel("bf16", 1, {1: 0.1})}))
    upkeep.turn()
    assert not caplog.records
