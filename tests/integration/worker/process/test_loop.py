"""A worker's parts before a real server, in orders of events that processes seldom take."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from redis import Redis
from redis.exceptions import ConnectionError

from tests.support.jobs import state_of
from tests.support.loaded import load_tiny
from tests.support.parts import (
    begin,
    build_worker,
    handle_all,
    let_lapse,
    post,
    raising,
    run_to_the_end,
    take,
)
from worker.__main__ import build
from worker.jobs.domain import Priority, Shard
from worker.jobs.keys import LEASES, job_key, png_key, rotation_name, sha256_key
from worker.jobs.reaper import Reaper
from worker.jobs.shard_queue import MAX_LOSSES, reap
from worker.process.loaded_model import LoadedModel
from worker.process.loop import WorkerLoop
from worker.process.messages import LeaseLost, ShardTaken
from worker.process.shard_leases import ShardLeases
from worker.results.in_redis import InRedis

GONE = ConnectionError("gone")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_tiny(tmp_path_factory.mktemp("models"))


@pytest.fixture
def worker(redis: Redis, model: LoadedModel) -> WorkerLoop:
    assert not len(model.engine), "the test before left chains behind"
    return build_worker(redis, model)


@pytest.fixture
def taken(redis: Redis, model: LoadedModel, worker: WorkerLoop, monkeypatch) -> Shard:
    """A shard that the intake took while Redis went away, before it could be handed on."""
    shard = post(redis, model)
    with monkeypatch.context() as away:
        away.setattr(worker.parts.writer, "start_all", raising(GONE))
        with pytest.raises(ConnectionError):
            worker.parts.intake.run_once()
    return shard


def test_a_shard_that_was_taken_while_redis_went_away_is_handed_on_later(worker, taken):
    lost = worker.parts.shards.heartbeat()
    assert lost == [], "its lease is prolonged, so no other worker would run it"
    worker.parts.intake.run_once()
    assert worker.parts.messages.get_nowait().lease.shard == taken


@pytest.mark.parametrize("elsewhere", ["queued", "running"])
def test_a_shard_that_lapsed_before_it_was_handed_on_is_not_run(redis, worker, taken, elsewhere):
    """Redis was away for longer than a lease, and another process looked first.

    Another shard of its job may run elsewhere.
    """
    let_lapse(redis, *worker.parts.shards.leases)
    redis.hset(job_key(taken.job), "state", elsewhere)
    worker.parts.intake.run_once()
    assert state_of(redis, taken.job) == elsewhere
    assert worker.parts.messages.empty()
    assert redis.lrange(f"rq:queue:{taken.queue}", 0, -1) == [taken.id.encode()]


def test_a_shard_that_a_heartbeat_found_lapsed_is_not_handed_on(redis, worker, taken):
    leases = worker.parts.shards.leases
    let_lapse(redis, *leases)
    assert worker.parts.shards.heartbeat() == leases
    worker.parts.intake.run_once()
    assert worker.parts.messages.empty()


def test_a_bad_shards_job_fails_even_if_redis_goes_away_meanwhile(
    redis, worker, model, monkeypatch
):
    shard = post(redis, model)
    redis.hset(f"rq:job:{shard.id}", "data", "no JSON")
    with monkeypatch.context() as away:
        away.setattr(worker.parts.writer, "fail", raising(GONE))
        with pytest.raises(ConnectionError):
            worker.parts.intake.run_once()
    [lease] = redis.zrange(LEASES, 0, -1)
    redis.zadd(LEASES, {lease: 0})
    assert reap(redis) == [(shard.id, "requeued")]
    worker.parts.intake.run_once()
    assert state_of(redis, shard.job) == "failed"
    assert redis.hget(job_key(shard.job), "error_code") == b"unknown_version"
    assert not redis.keys("rq:job:*")


def test_a_shard_that_comes_back_to_the_worker_that_lost_it_finishes(redis, worker, model):
    shard = post(redis, model, steps=30)
    first = begin(worker, shard, [0, 1, 2])
    worker.run_once()
    let_lapse(redis, first)
    second = worker.parts.shards.take([shard.rotation])
    worker.handle(ShardTaken(second, [0, 1, 2], None))
    worker.handle(LeaseLost(first))
    assert len(model.engine) == 3
    run_to_the_end(worker)
    assert state_of(redis, shard.job) == "finished"
    assert not redis.keys("rq:job:*")


def test_a_lost_shard_leaves_the_other_shards_of_its_job_running(redis, worker, model):
    shard = post(redis, model, count=66, steps=2)
    rotations = [rotation_name(priority, "tiny") for priority in Priority]
    leases = [worker.parts.shards.take(rotations) for _ in range(2)]
    worker.parts.writer.start(shard, 1)
    for lease in leases:
        worker.handle(ShardTaken(lease, list(lease.shard.indices), None))
    worker.handle(LeaseLost(leases[1]))
    run_to_the_end(worker)
    assert redis.hlen(sha256_key(shard.job)) == 64
    assert state_of(redis, shard.job) == "queued", "the other one waits for a worker"


def test_a_job_whose_shard_lost_every_worker_fails_and_says_why(redis, model):
    shard = post(redis, model)
    shards = ShardLeases(redis, [shard.rotation])
    for _ in range(MAX_LOSSES):
        assert state_of(redis, shard.job) == "queued"
        lease = shards.take([shard.rotation])
        redis.zadd(LEASES, {lease.execution.composite_key: 0})
        reap(redis)
    Reaper(redis).run_once()
    assert state_of(redis, shard.job) == "failed"
    assert redis.hget(job_key(shard.job), "error_code") == b"workers_lost"
    assert not redis.keys("rq:job:*")
    assert not redis.keys("rq:failed:*")


def test_a_suspect_that_is_lost_before_its_admission_holds_up_nothing(redis, worker, model):
    """The worker was stalled past the lease twice; in between the shard came back to it."""
    parts = worker.parts
    shard = post(redis, model)
    take(worker)
    let_lapse(redis, *parts.shards.leases)
    parts.intake.run_once()
    let_lapse(redis, parts.load.suspects[0])
    for lease in parts.shards.heartbeat():
        parts.messages.put(LeaseLost(lease))
    handle_all(worker)
    assert not worker.active
    parts.intake.run_once()
    assert parts.messages.get_nowait().lease.shard == shard


def test_a_results_store_that_hangs_at_the_end_keeps_back_no_shard(
    redis, worker, model, monkeypatch
):
    finished = post(redis, model, job="a" * 32)
    take(worker)
    while worker.active:
        worker.run_once()
    running = post(redis, model, job="b" * 32)
    take(worker)
    never = threading.Event()
    monkeypatch.setattr(worker.parts.writer, "publish_all", lambda *_: never.wait())
    monkeypatch.setattr("worker.process.loop._FLUSH_WITHIN_S", 0.1)
    worker.drain()
    waits = redis.lrange(f"rq:queue:{running.queue}", 0, -1)
    assert waits == [finished.id.encode(), running.id.encode()]
    never.set()
    model.engine.cancel([chain for active in worker.active for chain in active.chains()])


def test_shards_that_were_lost_together_step_together_and_nothing_else_does(redis, worker, model):
    for number in range(3):
        post(redis, model, job=f"lost{number}")
    gone = ShardLeases(redis, [rotation_name("interactive", "tiny")])
    for lease in gone.take_up_to(3, {rotation_name("interactive", "tiny"): 1024}):
        redis.zadd(LEASES, {lease.execution.composite_key: 0})
    reap(redis)
    innocent = post(redis, model, job="innocent")
    redis.lmove(f"rq:queue:{innocent.queue}", f"rq:queue:{innocent.queue}", "RIGHT", "LEFT")
    take(worker)
    assert len(worker.active) == 4
    before = model.engine.image_steps
    worker.run_once()
    assert model.engine.image_steps - before == 3 * 3
    assert {a.lease.suspect for a in worker.active if not a.is_parked()} == {True}
    late = post(redis, model, job="late")
    worker.parts.intake.run_once()
    assert redis.lrange(f"rq:queue:{late.queue}", 0, -1) == [late.id.encode()]
    run_to_the_end(worker)


def test_images_that_are_finished_are_not_drawn_again(redis, worker, model):
    shard = post(redis, model)
    first = worker.parts.shards.take([shard.rotation])
    worker.parts.writer.start(shard, 1)
    worker.parts.writer.publish(shard, [(1, b"a picture")])
    let_lapse(redis, first)
    worker.parts.intake.run_once()
    message = worker.parts.messages.get_nowait()
    assert message.indices == [0, 2]
    worker.handle(message)
    run_to_the_end(worker)
    assert state_of(redis, shard.job) == "finished"
    assert redis.hget(png_key(shard.job), "1") == b"a picture"


def test_a_worker_can_be_built_while_redis_is_away(model):
    build(Redis(port=1), {"tiny": model}, "cpu", InRedis())


def test_a_late_worker_leaves_the_saved_chains_of_its_successor_alone(redis, worker, model):
    shard = post(redis, model, steps=100)
    lease = begin(worker, shard, [0, 1, 2])
    worker.run_once()
    worker.save_all()
    saved = worker.parts.writer.saved(shard)
    let_lapse(redis, lease)
    worker.handle(LeaseLost(lease))
    worker.parts.sender.flush()
    assert saved
    assert worker.parts.writer.saved(shard) == saved


def test_a_shard_whose_hash_was_lost_with_the_server_is_run_again(redis, worker, model):
    shard = post(redis, model)
    begin(worker, shard, [1, 2])
    run_to_the_end(worker)
    assert state_of(redis, shard.job) == "queued", "image 0 was finished once, and is no more"
    take(worker)
    run_to_the_end(worker)
    assert state_of(redis, shard.job) == "finished"
    assert not redis.keys("rq:job:*")


def test_an_unknown_recipe_fails_its_job_and_no_other(redis, worker, model):
    shard = post(redis, model)
    lease = worker.parts.shards.take([shard.rotation])
    worker.parts.writer.start(shard, 1)
    strange = replace(shard, recipe=replace(shard.recipe, sampler="euler"))
    worker.handle(ShardTaken(replace(lease, shard=strange), [0], None))
    worker.parts.sender.flush()
    message = redis.hget(job_key(shard.job), "error_message").decode()
    assert message == (
        "the worker has no such plan: sampler='euler' is unknown; use ddpm, ddim or dpmpp_2m"
    )


def test_the_first_picture_of_an_image_stays(redis, worker, model):
    shard = post(redis, model)
    worker.parts.writer.start(shard, 1)
    worker.parts.writer.publish(shard, [(1, b"first")])
    worker.parts.writer.publish(shard, [(1, b"second")])
    assert redis.hget(png_key(shard.job), "1") == b"first"
