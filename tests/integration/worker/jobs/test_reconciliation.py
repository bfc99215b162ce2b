"""A live service from which keys are taken away: evicted, emptied or deleted. Its jobs end well."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from redis import Redis

from app.main import create_app
from app.settings import ApiSettings
from tests.support.folders import write_model
from tests.support.loaded import load_tiny
from tests.support.processes import eventually
from tests.support.server import serve
from worker.__main__ import build
from worker.jobs.domain import Priority
from worker.jobs.keys import (
    LEASES,
    LEFT,
    LOAD,
    QUEUES,
    ROTATION_PREFIX,
    SHARD_PREFIX,
    job_key,
    open_key,
    owner_key,
    rotation_name,
)
from worker.jobs.reconciliation import Reconciler
from worker.process.loaded_model import LoadedModel
from worker.process.shard_leases import ShardLeases
from worker.results.in_redis import InRedis

pytestmark = pytest.mark.redis
ROTATIONS = [rotation_name(priority, "tiny") for priority in Priority]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_tiny(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def client(
    shared_valkey_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("models")
    write_model(folder, "tiny")
    app = create_app(ApiSettings(redis_url=shared_valkey_url, models_dir=folder))
    with serve(app) as url, httpx.Client(base_url=url, timeout=20) as client:
        yield client


@pytest.fixture
def api(client: httpx.Client, redis: Redis) -> httpx.Client:
    """A client of an API that knows no job."""
    return client


@contextmanager
def working(redis: Redis, model: LoadedModel) -> Iterator[None]:
    worker = build(redis, {"tiny": model}, "cpu", InRedis())
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield
    finally:
        worker.request_stop()
        thread.join()


def post(api: httpx.Client, **request: Any) -> str:
    body = {"model": "tiny", "steps": 5, "count": 130} | request
    answer = api.post("/v1/jobs", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def state(api: httpx.Client, job: str) -> str:
    return str(api.get(f"/v1/jobs/{job}").json()["state"])


def delete(*patterns: str) -> Callable[[Redis], None]:
    def lose(redis: Redis) -> None:
        found = [key for pattern in patterns for key in redis.scan_iter(pattern)]
        assert found, "it is there"
        redis.delete(*found)

    return lose


def empty_queues(redis: Redis) -> None:
    for key in redis.scan_iter("rq:queue:*"):
        redis.ltrim(key, 1, 0)


def lose_one_entry(redis: Redis) -> None:
    (key,) = redis.scan_iter("rq:queue:bulk:*")
    redis.rpop(key)


WAITING = {
    "the queues": delete("rq:queue:*"),
    "the queues' entries": empty_queues,
    "one entry of a queue": lose_one_entry,
    "the hashes of shards": delete("rq:job:*"),
    "one hash of a shard": delete("rq:job:*-1"),
    "the rotations": delete(ROTATION_PREFIX + "*"),
    "rotations and names of queues": delete(ROTATION_PREFIX + "*", QUEUES),
    "queues, rotations and shards": delete("rq:*", ROTATION_PREFIX + "*"),
    "the open jobs": delete(open_key("interactive")),
    "what is left": delete(LEFT),
    "what owners have left": delete(LOAD),
}


@pytest.mark.parametrize("lost", WAITING)
def test_a_job_that_waits_is_finished_though_keys_of_it_are_lost(api, redis, model, lost):
    job = post(api)
    WAITING[lost](redis)
    reconciler = Reconciler(redis)
    for _ in range(3):
        reconciler.run_once()
    assert redis.zscore(open_key("interactive"), job)
    assert redis.hget(LEFT, job).startswith(b"650 130 5 tiny")
    assert redis.hgetall(LOAD) == {b"local": b"650"}
    with working(redis, model):
        eventually(lambda: state(api, job) == "finished", 60, "the job is finished")
    assert not redis.exists(LEFT, LOAD, open_key("interactive"))


def test_a_job_whose_leases_are_lost_is_queued_again_and_finished(api, redis, model):
    job = post(api)
    holder = ShardLeases(redis, ROTATIONS)
    holder.heartbeat()
    held = [holder.take(ROTATIONS) for _ in range(2)]
    redis.hset(job_key(job), "state", "running")
    redis.delete(LEASES)
    Reconciler(redis).run_once()
    assert state(api, job) == "queued"
    assert len(holder.heartbeat()) == len(held), "the worker drops what is not its own"
    with working(redis, model):
        eventually(lambda: state(api, job) == "finished", 60, "the job is finished")
    assert redis.hget(job_key(job), "attempts") == b"1", "no loss is counted"


def test_a_shard_that_a_worker_holds_is_not_posted_again(api, redis):
    job = post(api, count=3)
    holder = ShardLeases(redis, ROTATIONS)
    holder.heartbeat()
    lease = holder.take(ROTATIONS)
    redis.delete(f"{SHARD_PREFIX}{job}-0")
    reconciler = Reconciler(redis)
    for _ in range(3):
        reconciler.run_once()
    assert not redis.exists(f"{SHARD_PREFIX}{job}-0")
    assert holder.heartbeat() == [lease], "the worker drops it"
    holder.finish(lease)
    for _ in range(2):
        reconciler.run_once()
    assert redis.hget(f"{SHARD_PREFIX}{job}-0", "status") == b"queued"


def test_a_job_whose_record_is_lost_is_taken_out_of_everything(api, redis, model):
    job, other = post(api), post(api)
    redis.delete(job_key(job))
    Reconciler(redis).run_once()
    assert list(redis.hgetall(LEFT)) == [other.encode()]
    assert redis.hgetall(LOAD) == {b"local": b"650"}
    for index in (open_key("interactive"), owner_key("local")):
        assert redis.zrange(index, 0, -1) == [other.encode()]
    with working(redis, model):
        eventually(lambda: state(api, other) == "finished", 60, "the other one is finished")
        eventually(lambda: not redis.keys("rq:job:*"), 60, "its shards are dropped")


def test_a_job_of_which_no_key_is_listed_but_what_is_left_is_forgotten(api, redis):
    job = post(api)
    redis.delete(job_key(job), open_key("interactive"))
    Reconciler(redis).run_once()
    assert not redis.exists(LEFT, LOAD, owner_key("local"))


def test_each_look_is_at_some_jobs_and_all_are_reached(api, redis):
    jobs = [post(api, count=1) for _ in range(7)]
    redis.delete(*redis.scan_iter("rq:queue:*"))
    reconciler = Reconciler(redis, jobs_at_once=3)
    (key,) = {f"rq:queue:{name}:local" for name in ROTATIONS[:1]}
    lengths = []
    for _ in range(3):
        reconciler.run_once()
        lengths.append(redis.llen(key))
    assert lengths == [3, 6, 7]
    assert set(redis.lrange(key, 0, -1)) == {f"{job}-0".encode() for job in jobs}


def test_jobs_in_good_order_are_left_as_they_are(api, redis):
    post(api)
    post(api, priority="bulk")
    holder = ShardLeases(redis, ROTATIONS)
    holder.heartbeat()
    holder.take(ROTATIONS)
    before = {key: redis.dump(key) for key in redis.keys("*")}
    reconciler = Reconciler(redis)
    for _ in range(3):
        reconciler.run_once()
    assert {key: redis.dump(key) for key in redis.keys("*")} == before
