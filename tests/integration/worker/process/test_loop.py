"""A worker's parts before a real server, in orders of events that processes seldom take."""

from __future__ import annotations

import zlib
from dataclasses import replace

import pytest
from redis import Redis
from redis.exceptions import ConnectionError

from tests.support.loaded import load_tiny
from tests.support.parts import begin, let_lapse, post, run_to_the_end, state
from worker.jobs.keys import job_key, png_key, sha256_key
from worker.jobs.reaper import Reaper
from worker.jobs.shard_queue import MAX_LOSSES, make_queue, reap
from worker.process.intake import Intake
from worker.process.job_writer import JobWriter
from worker.process.load import WorkerLoad
from worker.process.loaded_model import LoadedModel
from worker.process.loop import WorkerLoop
from worker.process.messages import LeaseLost, MessageQueue, ShardTaken
from worker.process.shard_leases import ShardLeases
from worker.results.in_redis import InRedis


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_tiny(tmp_path_factory.mktemp("models"))


@pytest.fixture
def worker(redis: Redis, model: LoadedModel) -> WorkerLoop:
    assert not len(model.engine), "the test before left chains behind"
    made = WorkerLoop(redis, {"tiny": model}, "cpu", InRedis())
    made._shards.beat()
    return made


def test_a_shard_that_was_taken_while_redis_went_away_is_handed_on_when_it_is_back(
    redis, model, monkeypatch
):
    shard = post(redis, model)
    inbox, results = MessageQueue(), JobWriter(redis, InRedis())
    shards = ShardLeases(redis, [shard.queue])
    intake = Intake(shards, results, {"tiny": model}, WorkerLoad(), inbox, lambda: False)
    with monkeypatch.context() as away:
        away.setattr(results, "start", lambda *_: (_ for _ in ()).throw(ConnectionError("gone")))
        with pytest.raises(ConnectionError):
            intake.run_once()
    assert shards.beat() == [], "its lease is prolonged, so no other worker would run it"
    intake.run_once()
    assert inbox.get_nowait().lease.shard == shard


@pytest.mark.parametrize("elsewhere", ["queued", "running"])
def test_a_shard_that_lapsed_before_it_was_handed_on_is_neither_run_nor_told_as_running(
    redis, worker, model, monkeypatch, elsewhere
):
    """Redis was away for longer than a lease; another process looked first. Another shard of its job may run elsewhere."""
    shard = post(redis, model)
    with monkeypatch.context() as away:
        away.setattr(
            worker._results, "start", lambda *_: (_ for _ in ()).throw(ConnectionError("gone"))
        )
        with pytest.raises(ConnectionError):
            worker._intake.run_once()
    let_lapse(redis, worker._intake._taken)
    redis.hset(job_key(shard.job), "state", elsewhere)
    worker._intake.run_once()
    assert state(redis, shard) == elsewhere
    assert worker._inbox.empty()
    assert redis.lrange(f"rq:queue:{shard.queue}", 0, -1) == [shard.id.encode()]


def test_the_job_of_a_shard_of_another_version_fails_though_redis_goes_away_meanwhile(
    redis, worker, model, monkeypatch
):
    shard = post(redis, model)
    redis.hset(f"rq:job:{shard.id}", "data", '["worker", null, [], {}]')
    with monkeypatch.context() as away:
        away.setattr(
            worker._results, "fail", lambda *_: (_ for _ in ()).throw(ConnectionError("gone"))
        )
        with pytest.raises(ConnectionError):
            worker._intake.run_once()
    [lease] = redis.zrange(f"rq:wip:{shard.queue}", 0, -1)
    redis.zadd(f"rq:wip:{shard.queue}", {lease: 0})
    assert reap([make_queue(shard.queue, redis)]) == [(shard.id, "requeued")]
    worker._intake.run_once()
    assert state(redis, shard) == "failed"
    assert redis.hget(job_key(shard.job), "error_code") == b"unknown_version"
    assert not redis.keys("rq:job:*")


def test_a_shard_that_comes_back_to_the_worker_that_lost_it_is_run_once_more_and_finishes(
    redis, worker, model
):
    shard = post(redis, model, steps=30)
    first = begin(worker, shard, [0, 1, 2])
    worker._turn()
    let_lapse(redis, first)
    second = worker._shards.take([shard.queue])
    worker._heed(ShardTaken(second, [0, 1, 2], None))
    worker._heed(LeaseLost(first))
    assert len(model.engine) == 3
    run_to_the_end(worker)
    assert state(redis, shard) == "finished"
    assert not redis.keys("rq:job:*")


def test_losing_one_shard_leaves_the_other_shards_of_its_job_running(redis, worker, model):
    shard = post(redis, model, count=66, steps=2)
    leases = [worker._shards.take(worker._shards.queue_names()) for _ in range(2)]
    worker._results.start(shard, 1)
    for lease in leases:
        worker._heed(ShardTaken(lease, list(lease.shard.indices), None))
    worker._heed(LeaseLost(leases[1]))
    run_to_the_end(worker)
    assert redis.hlen(sha256_key(shard.job)) == 64
    assert state(redis, shard) == "queued", "the other one waits for a worker"


def test_a_job_whose_shard_lost_every_worker_fails_and_says_why(redis, model):
    shard = post(redis, model)
    shards = ShardLeases(redis, [shard.queue])
    for _ in range(MAX_LOSSES):
        assert state(redis, shard) == "queued"
        lease = shards.take([shard.queue])
        redis.zadd(lease.started_key, {lease.execution.composite_key: 0})
        reap([make_queue(shard.queue, redis)])
    Reaper(redis).run_once()
    assert state(redis, shard) == "failed"
    assert redis.hget(job_key(shard.job), "error_code") == b"workers_lost"
    assert not redis.keys("rq:job:*")
    assert not redis.keys("rq:failed:*")


def test_a_suspect_that_is_lost_before_it_is_admitted_keeps_the_worker_from_nothing(
    redis, worker, model
):
    """Stalled past the lease twice, and between the two the shard came back to this worker."""
    shard = post(redis, model)
    worker._intake.run_once()
    worker._read_inbox()
    let_lapse(redis, next(iter(worker._held.values())).lease)
    worker._intake.run_once()
    let_lapse(redis, worker._load.suspect)
    for lease in worker._shards.beat():
        worker._inbox.put(LeaseLost(lease))
    worker._read_inbox()
    assert not worker._held
    worker._intake.run_once()
    assert worker._inbox.get_nowait().lease.shard == shard


def test_images_that_are_finished_are_not_drawn_again(redis, worker, model):
    shard = post(redis, model)
    first = worker._shards.take([shard.queue])
    worker._results.start(shard, 1)
    worker._results.publish(shard, [(1, b"a picture")])
    let_lapse(redis, first)
    worker._intake.run_once()
    taken = worker._inbox.get_nowait()
    assert taken.indices == [0, 2]
    worker._heed(taken)
    run_to_the_end(worker)
    assert state(redis, shard) == "finished"
    assert redis.hget(png_key(shard.job), "1") == b"a picture"


def test_a_worker_can_be_made_while_redis_is_away(model):
    WorkerLoop(Redis(port=1), {"tiny": model}, "cpu", InRedis())


def test_a_late_worker_leaves_the_saved_chains_of_its_successor_alone(redis, worker, model):
    shard = post(redis, model, steps=100)
    lease = begin(worker, shard, [0, 1, 2])
    worker._turn()
    worker._save_all()
    saved = worker._results.saved(shard)
    let_lapse(redis, lease)
    worker._heed(LeaseLost(lease))
    worker._outbox.flush()
    assert saved
    assert worker._results.saved(shard) == saved


def test_a_shard_whose_hash_was_lost_with_the_server_is_run_again_and_not_forgotten(
    redis, worker, model
):
    shard = post(redis, model)
    begin(worker, shard, [1, 2])
    run_to_the_end(worker)
    assert state(redis, shard) == "queued", "image 0 was finished once, and is no more"
    worker._intake.run_once()
    worker._heed(worker._inbox.get_nowait())
    run_to_the_end(worker)
    assert state(redis, shard) == "finished"
    assert not redis.keys("rq:job:*")


def test_a_lease_that_lapsed_while_redis_was_away_is_not_handed_on(redis, model):
    shard = post(redis, model)
    inbox, shards = MessageQueue(), ShardLeases(redis, [shard.queue])
    intake = Intake(
        shards, JobWriter(redis, InRedis()), {"tiny": model}, WorkerLoad(), inbox, lambda: False
    )
    intake._taken = shards.take([shard.queue])
    let_lapse(redis, intake._taken)
    assert shards.beat() == [intake._taken]
    intake.run_once()
    assert inbox.empty()


def test_a_shard_of_another_version_fails_its_job(redis, model):
    shard = post(redis, model)
    redis.hset(
        "rq:job:" + shard.id,
        "data",
        zlib.compress(b'["worker.sample", null, [], {"job": "of tomorrow"}]'),
    )
    shards = ShardLeases(redis, [shard.queue])
    Intake(
        shards,
        JobWriter(redis, InRedis()),
        {"tiny": model},
        WorkerLoad(),
        MessageQueue(),
        lambda: False,
    ).run_once()
    assert state(redis, shard) == "failed"
    assert redis.hget(job_key(shard.job), "error_code") == b"unknown_version"


def test_a_recipe_that_the_worker_does_not_know_fails_its_job_and_no_other(redis, worker, model):
    shard = post(redis, model)
    lease = worker._shards.take([shard.queue])
    worker._results.start(shard, 1)
    strange = replace(shard, recipe=replace(shard.recipe, sampler="euler"))
    worker._heed(ShardTaken(replace(lease, shard=strange), [0], None))
    worker._outbox.flush()
    assert (
        redis.hget(job_key(shard.job), "error_message")
        == b"the worker has no such plan: sampler='euler' is unknown; use ddpm, ddim or dpmpp_2m"
    )


def test_the_first_picture_of_an_image_stays(redis, worker, model):
    shard = post(redis, model)
    worker._results.start(shard, 1)
    worker._results.publish(shard, [(1, b"first")])
    worker._results.publish(shard, [(1, b"second")])
    assert redis.hget(png_key(shard.job), "1") == b"first"
