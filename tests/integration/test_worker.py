"""A worker's parts before a real server, in orders of events that processes seldom take."""

from __future__ import annotations

from threading import Event

import pytest
import torch
from redis import Redis
from redis.exceptions import ConnectionError

from models.catalog import Catalog
from tests.support.folders import write_model
from worker import contract
from worker.contract import Recipe, Shard, job_key, open_key, shards_of
from worker.intake import Inbox, Intake, Load, Lost, Taken
from worker.loaded import LoadedModel
from worker.queue import MAX_LOSSES, enqueue, make_queue, reap
from worker.results import Results
from worker.rq_worker import Lease, ShardWorker
from worker.service import Worker
from worker.store import InRedis
from worker.upkeep import Upkeep


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    root = tmp_path_factory.mktemp("models")
    write_model(root, "tiny")
    return LoadedModel(Catalog.read(root), "tiny", torch.device("cpu"), capacity=128)


@pytest.fixture
def worker(redis: Redis, model: LoadedModel) -> Worker:
    assert not len(model.engine), "the test before left chains behind"
    made = Worker(redis, {"tiny": model}, "cpu", InRedis())
    made._shards.register()
    return made


def post(redis: Redis, model: LoadedModel, count: int = 3, steps: int = 4) -> Shard:
    """A job as the API records it; its first shard."""
    recipe = Recipe("tiny", model.card.sha256, "ddpm", steps, "fixed_small", 0.0, 7)
    shards = list(shards_of("a" * 32, recipe, 0, count, "local", "interactive"))
    fields = {
        "id": shards[0].job,
        "state": "queued",
        "count": count,
        "priority": "interactive",
        "results_ttl_s": 60,
        "attempts": 0,
    }
    with redis.pipeline() as pipe:
        pipe.hset(job_key(shards[0].job), mapping=fields)
        pipe.zadd(open_key("interactive"), {shards[0].job: 1})
        enqueue(shards, pipe)
        pipe.execute()
    return shards[0]


def state(redis: Redis, shard: Shard) -> str:
    return redis.hget(job_key(shard.job), "state").decode()


def let_lapse(redis: Redis, lease: Lease) -> None:
    """As if no heartbeat had come for long; whoever looks puts the shard back."""
    redis.zadd(lease.started_key, {lease.execution.composite_key: 0})
    assert reap([lease.queue]) == [(lease.shard.id, "requeued")]


def run_to_the_end(worker: Worker) -> None:
    while worker._held:
        worker._turn()
    worker._outbox.flush()


def test_a_shard_that_was_taken_while_redis_went_away_is_handed_on_when_it_is_back(redis, model, monkeypatch):
    shard = post(redis, model)
    inbox, results = Inbox(), Results(redis, InRedis())
    shards = ShardWorker(redis, [shard.queue])
    intake = Intake(shards, results, {"tiny": model}, Load(), inbox, lambda: False)
    with monkeypatch.context() as away:
        away.setattr(results, "start", lambda *_: (_ for _ in ()).throw(ConnectionError("gone")))
        with pytest.raises(ConnectionError):
            intake.turn()
    assert shards.beat() == [], "its lease is prolonged, so no other worker would run it"
    intake.turn()
    assert inbox.get_nowait().lease.shard == shard


def test_a_shard_that_comes_back_to_the_worker_that_lost_it_is_run_once_more_and_finishes(redis, worker, model):
    shard = post(redis, model, steps=30)
    first = worker._shards.take([shard.queue])
    worker._results.start(shard, 1)
    worker._heed(Taken(first, [0, 1, 2], None))
    worker._turn()
    let_lapse(redis, first)
    second = worker._shards.take([shard.queue])
    worker._heed(Taken(second, [0, 1, 2], None))
    worker._heed(Lost(first))
    assert len(model.engine) == 3
    run_to_the_end(worker)
    assert state(redis, shard) == "finished"
    assert not redis.keys("rq:job:*")


def test_losing_one_shard_leaves_the_other_shards_of_its_job_running(redis, worker, model):
    shard = post(redis, model, count=66, steps=2)
    leases = [worker._shards.take(worker._shards.queue_names()) for _ in range(2)]
    worker._results.start(shard, 1)
    for lease in leases:
        worker._heed(Taken(lease, list(lease.shard.indices), None))
    worker._heed(Lost(leases[1]))
    run_to_the_end(worker)
    assert redis.hlen(contract.sha256_key(shard.job)) == 64
    assert state(redis, shard) == "running"


def test_a_job_whose_shard_lost_every_worker_fails_and_says_why(redis, model):
    shard = post(redis, model)
    shards = ShardWorker(redis, [shard.queue])
    stopping = Event()
    stopping.set()
    upkeep = Upkeep(redis, shards, Results(redis, InRedis()), Inbox(), lambda: pytest.fail("not asked"), stopping)
    upkeep._introduce = lambda: None
    for _ in range(MAX_LOSSES + 1):
        assert state(redis, shard) == "queued"
        lease = shards.take([shard.queue])
        redis.zadd(lease.started_key, {lease.execution.composite_key: 0})
        reap([make_queue(shard.queue, redis)])
    upkeep.turn()
    assert state(redis, shard) == "failed"
    assert redis.hget(job_key(shard.job), "error_code") == b"workers_lost"
    assert not redis.keys("rq:job:*")
    assert not redis.keys("rq:failed:*")


def test_images_that_are_finished_are_not_drawn_again(redis, worker, model):
    shard = post(redis, model)
    first = worker._shards.take([shard.queue])
    worker._results.start(shard, 1)
    worker._results.publish(shard, [(1, b"a picture")])
    let_lapse(redis, first)
    worker._intake.turn()
    taken = worker._inbox.get_nowait()
    assert taken.indices == [0, 2]
    worker._heed(taken)
    run_to_the_end(worker)
    assert state(redis, shard) == "finished"
    assert redis.hget(contract.png_key(shard.job), "1") == b"a picture"
