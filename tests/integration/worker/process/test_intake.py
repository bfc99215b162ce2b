"""What a worker takes from the queue while it holds this and that."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from redis import Redis

from tests.support.loaded import load_tiny
from tests.support.parts import post
from worker.jobs.domain import Priority, Recipe, Shard
from worker.jobs.keys import queue_name
from worker.process.intake import Intake
from worker.process.job_writer import JobWriter
from worker.process.load import WorkerLoad
from worker.process.loaded_model import LoadedModel
from worker.process.loop import WorkerLoop
from worker.process.messages import MessageQueue
from worker.process.shard_leases import ShardLeases
from worker.results.in_redis import InRedis
from worker.results.store import StoreFault


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_tiny(tmp_path_factory.mktemp("models"))


def test_bulk_work_is_taken_beside_interactive_work_so_that_the_floor_has_something_to_keep_moving(
    redis, model
):
    shard = post(redis, model, count=3 * 64, steps=2)
    inbox = MessageQueue()
    shards = ShardLeases(redis, [shard.queue, queue_name("bulk", "tiny")])
    intake = Intake(
        shards, JobWriter(redis, InRedis()), {"tiny": model}, WorkerLoad(), inbox, lambda: False
    )
    intake.run_once()
    intake.run_once()
    assert [inbox.get_nowait().lease.shard.number for _ in range(2)] == [0, 1]


@pytest.mark.parametrize("capacity", [128, 192, 1024])
def test_however_many_interactive_shards_wait_bulk_work_has_a_place(
    redis, model, monkeypatch, capacity
):
    monkeypatch.setattr(model, "capacity", capacity)
    shard = post(redis, model)
    shards = ShardLeases(redis, [shard.queue])
    intake = Intake(
        shards,
        JobWriter(redis, InRedis()),
        {"tiny": model},
        load := WorkerLoad(),
        MessageQueue(),
        lambda: False,
    )
    bulk = replace(shard, number=1)
    while shard.queue in intake._wanted():
        load.add(shard, 64)
    assert list(intake._wanted()) == [bulk.queue]
    load.add(bulk, 64)
    assert not intake._wanted(), "the pool is full"
    load.add(shard, -64)
    assert list(intake._wanted()) == [shard.queue], "the next place is for who is waited for"


def test_one_owners_many_big_jobs_leave_room_for_others_and_for_its_small_ones(
    redis, model, monkeypatch
):
    """Those wait in the pool for the next step, and not outside until 64 images have left."""
    monkeypatch.setattr("worker.process.intake._LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(model, "capacity", 1024)
    big = [post(redis, model, count=64, owner="ann", job=f"big{number}") for number in range(20)]
    shards = ShardLeases(redis, [queue_name("interactive", "tiny")])
    intake = Intake(
        shards,
        JobWriter(redis, InRedis()),
        {"tiny": model},
        load := WorkerLoad(),
        inbox := MessageQueue(),
        lambda: False,
    )

    def taken() -> list[str]:
        for _ in range(20):
            intake.run_once()
        return [inbox.get_nowait().lease.shard.job for _ in range(inbox.qsize())]

    assert taken() == [f"big{number}" for number in range(8)]
    for owner, count in {"ann": 1, "bob": 64}.items():
        post(redis, model, count=count, owner=owner, job=f"{owner}s")
    assert taken() == ["bobs", "anns"]
    for ended in big[:2]:
        load.add(ended, -64)
    assert taken() == ["big8"]


@pytest.mark.parametrize(("capacity", "bulk"), [(64, 1), (127, 1), (191, 1), (192, 2), (256, 2)])
def test_bulk_work_leaves_room_for_a_job_that_somebody_waits_for_unless_the_pool_holds_one_shard_only(
    redis, model, monkeypatch, capacity, bulk
):
    monkeypatch.setattr(model, "capacity", capacity)
    shard = post(redis, model, count=4 * 64, steps=2)
    shards = ShardLeases(redis, [shard.queue, queue_name("bulk", "tiny")])
    intake = Intake(
        shards,
        JobWriter(redis, InRedis()),
        {"tiny": model},
        load := WorkerLoad(),
        MessageQueue(),
        lambda: False,
    )
    first = shards.take([shard.queue])
    for _ in range(4):
        if (wanted := intake._wanted()) and shards.take(
            [name for name in wanted if name.startswith("bulk")]
        ):
            load.add(replace(first.shard, number=1), 64)
    assert load.of("tiny", Priority.BULK) == 64 * bulk
    assert (shard.queue in intake._wanted()) == (capacity - 64 * bulk >= 64)


def test_of_a_big_job_a_worker_takes_no_more_than_it_can_soon_run(
    redis: Redis, model: LoadedModel
) -> None:
    worker = WorkerLoop(redis, {"tiny": model}, "cpu", InRedis())
    worker._shards.beat()
    post(redis, model, count=16 * 64, steps=2)
    for _ in range(6):
        worker._intake.run_once()
    held = worker._load.of("tiny", Priority.BULK)
    assert model.low_water <= held < model.low_water + 64
    assert redis.llen("rq:queue:bulk:tiny") >= 12


def test_saved_chains_that_the_store_does_not_give_hold_nobody_up_for_long(
    redis, model, monkeypatch, caplog
):
    monkeypatch.setattr("worker.process.intake._SAVED_WITHIN_S", 0.05)
    shard = post(redis, model)
    results, inbox = JobWriter(redis, InRedis()), MessageQueue()

    def unreadable(_shard: Shard) -> bytes:
        raise StoreFault("an object that may not be read")

    monkeypatch.setattr(results, "saved", unreadable)
    intake = Intake(
        ShardLeases(redis, [shard.queue]),
        results,
        {"tiny": model},
        WorkerLoad(),
        inbox,
        lambda: False,
    )
    with pytest.raises(StoreFault):
        intake.run_once()
    assert inbox.empty()
    time.sleep(0.06)
    intake.run_once()
    taken = inbox.get_nowait()
    assert (taken.lease.shard.id, taken.indices, taken.saved) == (shard.id, [0, 1, 2], None)
    assert "begins anew" in caplog.text


def test_what_the_worker_holds_of_each_owner_is_told_when_a_shard_is_taken():
    load, shard = (
        WorkerLoad(),
        Shard(
            "job",
            0,
            0,
            64,
            "ann",
            "interactive",
            Recipe("tiny", "", "ddpm", 1, "fixed_small", 0.0, 1),
        ),
    )
    load.add(shard, 64)
    load.add(replace(shard, owner="bob"), 2)
    load.add(replace(shard, number=1), 64)  # bulk
    load.add(shard, -60)
    load.add(replace(shard, owner="bob"), -2)
    assert load.by_owner() == {"ann": 4}
    assert (load.of("tiny", *Priority), load.of("tiny", Priority.BULK)) == (68, 64)
