"""When a job is running and when it is queued: it runs while a worker holds a shard of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from redis import Redis

from tests.support.processes import eventually, later
from tests.support.worker import IdleWorker
from worker.jobs.domain import Priority
from worker.jobs.keys import LEASES, rotation_name
from worker.process.shard_leases import Lease, ShardLeases

Post = Callable[..., dict[str, Any]]
QUEUES = [rotation_name(priority, "tiny") for priority in Priority]


@pytest.fixture
def join(redis: Redis) -> Callable[[], ShardLeases]:
    """`join()`: a worker that takes shards when the test says so."""

    def join() -> ShardLeases:
        joined = ShardLeases(redis, QUEUES)
        joined.heartbeat()
        return joined

    return join


def take(shards: ShardLeases, idle: IdleWorker) -> Lease:
    lease = shards.take(QUEUES)
    assert lease
    idle.start(lease.shard.job)
    return lease


def lose(redis: Redis, lease: Lease) -> None:
    """Let the lease lapse, as if its worker had not been heard of for 15 s."""
    redis.zadd(LEASES, {lease.execution.composite_key: 0}, xx=True)


def state(api: httpx.Client, job: dict[str, Any]) -> str:
    return api.get(job["links"]["self"]).json()["state"]


def test_the_api_requeues_a_job_when_no_worker_is_left(api, redis, worker, post, join):
    job = post()
    lease = take(join(), worker)
    began = api.get(job["links"]["self"]).json()
    assert (began["state"], began["queue"]) == ("running", None)
    lose(redis, lease)
    eventually(lambda: state(api, job) == "queued", 20, "the job is queued again")
    again = api.get(job["links"]["self"]).json()
    assert again["queue"]["position"] == 0
    assert again["started_at"] == began["started_at"]
    take(join(), worker)
    again = api.get(job["links"]["self"]).json()
    assert again["started_at"] == began["started_at"], "when a worker first took it"


def test_a_job_that_lost_too_many_workers_fails_without_any_worker(api, redis, worker, post, join):
    job = post()
    shards = join()
    for _ in range(3):
        lose(redis, take(shards, worker))
        eventually(lambda: state(api, job) != "running", 20, "the loss is noticed")
    eventually(lambda: state(api, job) == "failed", 20, "the job has failed")
    assert api.get(job["links"]["self"]).json()["error"]["code"] == "workers_lost"


def test_a_job_that_is_given_back_is_queued_at_once_and_waiters_are_woken(api, worker, post, join):
    job = post()
    shards = join()
    take(shards, worker)
    with later(0.2, shards.close):
        assert api.get(job["links"]["self"], params={"wait": 20}).json()["state"] == "queued"


def test_a_job_runs_as_long_as_one_of_its_workers_does(api, redis, worker, post, join):
    job = post(count=130)
    one, other = join(), join()
    take(one, worker)
    last = take(other, worker)
    one.close()
    assert state(api, job) == "running"
    other.finish(last)
    assert state(api, job) == "queued", "its third part waits, and nobody holds one"


def test_images_that_a_late_worker_stores_of_a_queued_job_count(api, redis, worker, post, join):
    job = post(count=2)
    shards = join()
    take(shards, worker)
    worker.publish(job["id"], [0])
    shards.close()
    assert worker.publish(job["id"], [1])
    ended = api.get(job["links"]["self"]).json()
    assert (ended["state"], ended["progress"]["images_done"]) == ("finished", 2)
    assert shards.take(QUEUES), "its shard is in the queue yet"
    assert worker.start(job["id"]) == b"finished", "and whoever takes it lets it go"
