"""Chains that one worker saves and another takes up, through Redis and through a results store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from redis import Redis

from models.checkpoints.catalog import Catalog
from tests.support.clock import SimulatedClock
from tests.support.folders import write_model
from tests.support.jobs import JOB, state_of
from tests.support.networks import LatePool
from tests.support.parts import begin, build_worker, let_lapse, post, raising, run_to_the_end, take
from worker.calibration.calibrate import Calibration
from worker.jobs import transitions
from worker.jobs.domain import Shard
from worker.jobs.keys import chains_key, sha256_key
from worker.process.job_writer import LARGE_BYTES, JobWriter, Save
from worker.process.loaded_model import LoadedModel
from worker.process.loop import WorkerLoop
from worker.process.messages import JobEnded
from worker.process.snapshot_saver import SnapshotSaver
from worker.results.in_redis import InRedis
from worker.results.store import ResultsStore, StoreFault
from worker.results.url import open_store

STEPS = 12
IN_REDIS = InRedis()


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[LoadedModel]]:
    """Two models that step three images together, however busy the machine is."""
    root = tmp_path_factory.mktemp("models")
    write_model(root, "tiny")
    threads = torch.get_num_threads()
    calibration = Calibration({4: 0.001}, threads=1, fewer=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("worker.calibration.tune.calibrate", lambda *_, **options: calibration)
        yield [
            LoadedModel(Catalog.read(root), "tiny", torch.device("cpu"), 64, "fp32")
            for _ in range(2)
        ]
    torch.set_num_threads(threads)


@pytest.fixture
def models(loaded: list[LoadedModel]) -> Iterator[list[LoadedModel]]:
    """The same model in two workers, empty."""
    yield loaded
    for model in loaded:
        model.engine.cancel([(f"{JOB}-0", index) for index in range(3)])
        model.engine.image_steps = 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the results store."""
    return tmp_path / "pictures"


@pytest.fixture
def store(folder: Path) -> ResultsStore:
    return open_store(f"file://{folder}")


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock()


def worker_with(
    redis: Redis,
    model: LoadedModel,
    store: ResultsStore = IN_REDIS,
    large_bytes: int = LARGE_BYTES,
    **options: Any,
) -> WorkerLoop:
    """Return a worker to which copies cost no time.

    `options` are those of `worker.__main__.build`.
    """
    writer = JobWriter(redis, store, large_bytes)
    options = {"cpu_clock": lambda: 0.0} | options
    return build_worker(redis, model, store, writer=writer, **options)


def hashes(redis: Redis, shard: Shard) -> dict[bytes, bytes]:
    return redis.hgetall(sha256_key(shard.job))


def start(redis: Redis, worker: WorkerLoop, sampler: str = "ddpm", turns: int = 5) -> Shard:
    """Begin a job of three images; some of its steps are done and saved."""
    shard = post(redis, worker.models["tiny"], steps=STEPS, sampler=sampler)
    begin(worker, shard, [0, 1, 2])
    for _ in range(turns):
        worker.run_once()
    worker.save_all()
    return shard


def turn_later(worker: WorkerLoop, clock: SimulatedClock, seconds: float = 10.0) -> None:
    """Let the loop make a turn after so many seconds; chains that have stepped are due then."""
    clock.pass_s(seconds)
    worker.run_once()


def take_over(redis: Redis, first: WorkerLoop, second: WorkerLoop) -> None:
    """Lose the first worker, and let the second one finish what it held."""
    let_lapse(redis, *first.parts.shards.leases)
    take(second)
    run_to_the_end(second)


def undisturbed(redis: Redis, model: LoadedModel, sampler: str) -> dict[bytes, bytes]:
    """Return the hashes of the images if nothing happens to their worker."""
    worker = worker_with(redis, model)
    shard = start(redis, worker, sampler)
    run_to_the_end(worker)
    expected = hashes(redis, shard)
    redis.flushall()
    model.engine.image_steps = 0
    return expected


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp_2m"])
@pytest.mark.parametrize("large_bytes", [1, 1 << 20], ids=["in the store", "in Redis"])
def test_chains_that_another_worker_takes_up_end_in_the_same_bytes(
    redis, models, folder, store, sampler, large_bytes
):
    """Nothing of them stays."""
    expected = undisturbed(redis, models[0], sampler)
    first, second = (worker_with(redis, model, store, large_bytes) for model in models)
    shard = start(redis, first, sampler)
    assert (folder / shard.job / "chains-0").exists() == (large_bytes == 1)
    take_over(redis, first, second)
    assert state_of(redis, shard.job) == "finished"
    assert hashes(redis, shard) == expected
    assert models[1].engine.image_steps == 3 * (STEPS - 5)
    left = sorted(path.name for path in (folder / shard.job).iterdir())
    assert left == ["0.png", "1.png", "2.png"]
    assert not redis.exists(chains_key(shard.job))


@pytest.mark.parametrize("later", ["the same, emptied", "none"])
def test_chains_that_the_store_no_longer_has_are_computed_again(
    redis, models, folder, store, later
):
    expected = undisturbed(redis, models[0], "ddpm")
    first = worker_with(redis, models[0], store, large_bytes=1)
    shard = start(redis, first)
    (folder / shard.job / "chains-0").unlink()
    second = worker_with(redis, models[1], IN_REDIS if later == "none" else store, large_bytes=1)
    take_over(redis, first, second)
    assert hashes(redis, shard) == expected
    assert models[1].engine.image_steps == 3 * STEPS


def test_chains_of_a_job_that_was_cancelled_are_not_left_in_the_store(redis, models, folder, store):
    worker = worker_with(redis, models[0], store, large_bytes=1)
    shard = post(redis, models[0], steps=STEPS)
    begin(worker, shard, [0, 1, 2])
    worker.run_once()
    keys = transitions.transition_keys(shard.job, shard.job_priority)
    transitions.CANCEL.call(redis, **keys)
    worker.save_all()
    assert not list((folder / shard.job).iterdir())
    assert worker.parts.messages.get_nowait() == JobEnded(shard.job)


def test_chains_that_the_store_cannot_take_keep_no_others_out_of_redis(
    redis, models, store, monkeypatch
):
    worker = worker_with(redis, models[0], store, large_bytes=100)
    large = start(redis, worker)
    small = replace(large, number=1)
    monkeypatch.setattr(store, "put_blob", raising(StoreFault("away")))
    with pytest.raises(StoreFault):
        worker.parts.writer.save([Save(bytes(100), [(large, 1)]), Save(b"chains", [(small, 1)])])
    assert worker.parts.writer.saved(small) == b"chains"


@pytest.mark.parametrize("error", [StoreFault("away"), torch.OutOfMemoryError("no room")], ids=repr)
def test_chains_that_cannot_be_saved_at_the_end_keep_back_no_picture_and_no_shard(
    redis, models, monkeypatch, error
):
    worker = worker_with(redis, models[0])
    shard = start(redis, worker)
    for _ in range(STEPS - 6):
        models[0].engine.step([(shard.id, 0), (shard.id, 1)])
    worker.run_once()  # two take their last row
    monkeypatch.setattr(worker.parts.saver, "finish", raising(error))
    worker.drain()
    assert set(hashes(redis, shard)) == {b"0", b"1"}
    assert redis.lrange(f"rq:queue:{shard.queue}", 0, -1) == [shard.id.encode()]
    assert state_of(redis, shard.job) == "queued"


def full_device(model: LoadedModel, monkeypatch: pytest.MonkeyPatch, room: int) -> list[int]:
    """Leave memory for copies of so many chains together; return how many each copy was of."""
    pool, tried = model.engine.pool, []
    read = pool.read

    def read_if_it_fits(slots):
        tried.append(len(slots))
        if len(slots) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return read(slots)

    monkeypatch.setattr(pool, "read", read_if_it_fits)
    return tried


def test_a_save_without_memory_is_skipped_and_halved_until_it_fits(
    redis, models, clock, monkeypatch, caplog
):
    expected = undisturbed(redis, models[0], "ddpm")
    writer = JobWriter(redis, IN_REDIS)
    worker = worker_with(redis, models[0], clock=clock)
    shard = start(redis, worker)
    redis.delete(chains_key(shard.job))
    tried = full_device(models[0], monkeypatch, room=1)
    saver = SnapshotSaver(
        worker.parts.shards,
        writer,
        worker.parts.messages,
        copy_bytes=4 * models[0].chain_bytes,
        clock=clock,
        cpu_clock=lambda: 0.0,
    )
    for active in worker.active:
        active.saved_steps = 0
    for _ in range(3):
        clock.pass_s(10)
        saver.save(saver.due(worker.active))
        saver.run_once()
    assert tried == [3, 2, 1, 1, 1]
    assert saver.copy_bytes == models[0].chain_bytes
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "no memory to copy the chains of 1 shards" in warning
    assert writer.saved(shard)
    take_over(redis, worker, worker_with(redis, models[1]))
    assert hashes(redis, shard) == expected


def test_a_worker_that_never_has_memory_for_a_save_serves_on(redis, models, clock, monkeypatch):
    expected = undisturbed(redis, models[0], "ddpm")
    worker = worker_with(redis, models[0], clock=clock)
    shard = start(redis, worker, turns=2)
    tried = full_device(models[0], monkeypatch, room=0)
    for _ in range(4):
        turn_later(worker, clock)
    assert tried, "a save was tried"
    with pytest.raises(MemoryError):
        worker.save_all()
    run_to_the_end(worker)
    assert hashes(redis, shard) == expected


def test_a_picture_that_could_not_leave_the_engine_is_no_other_pictures_loss(
    redis, models, monkeypatch
):
    expected = undisturbed(redis, models[0], "ddpm")
    first = worker_with(redis, models[0])
    shard = start(redis, first)
    engine = models[0].engine
    for _ in range(STEPS - 6):
        engine.step([(shard.id, 0)])
    with monkeypatch.context() as broken:
        broken.setattr(engine.pool, "copy_out", raising(torch.OutOfMemoryError("no room")))
        with pytest.raises(torch.OutOfMemoryError):
            first.run_once()
    first.save_all()
    take_over(redis, first, worker_with(redis, models[1]))
    assert hashes(redis, shard) == expected
    two_went_on_and_one_began_anew = STEPS + 2 * (STEPS - 6)
    assert models[1].engine.image_steps == two_went_on_and_one_began_anew


def test_a_shard_that_has_not_stepped_is_not_saved_again(redis, models, clock):
    worker = worker_with(redis, models[0], clock=clock)
    shard = start(redis, worker)
    redis.delete(chains_key(shard.job))
    clock.pass_s(10)
    assert worker.parts.saver.due(worker.active) == []
    turn_later(worker, clock)
    worker.parts.saver.run_once()
    assert worker.parts.writer.saved(shard)


def test_pictures_on_their_way_from_a_gpu_have_left_when_the_rest_is_saved(
    redis, models, monkeypatch
):
    expected = undisturbed(redis, models[0], "ddpm")
    engine, pool = models[0].engine, models[0].engine.pool
    late = LatePool(pool.network, pool.shape, pool.capacity, pool.device)
    monkeypatch.setattr(engine, "pool", late)
    worker = worker_with(redis, models[0])
    shard = start(redis, worker, turns=STEPS - 1)
    engine.step()
    assert (len(engine), engine.room) == (3, pool.capacity)
    worker.save_all()
    assert len(engine) == 0
    run_to_the_end(worker)
    assert state_of(redis, shard.job) == "finished"
    assert hashes(redis, shard) == expected


def test_pictures_on_their_way_from_a_gpu_have_left_when_chains_are_due(
    redis, models, monkeypatch, clock
):
    engine, pool = models[0].engine, models[0].engine.pool
    late = LatePool(pool.network, pool.shape, pool.capacity, pool.device)
    monkeypatch.setattr(engine, "pool", late)
    worker = worker_with(redis, models[0], clock=clock)
    shard = start(redis, worker)
    for _ in range(STEPS - 6):
        engine.step([(shard.id, 0)])
    turn_later(worker, clock)
    (copy,) = worker.parts.saver.copies
    assert [snapshot.request.index for snapshot in copy.snapshots] == [1, 2]
    run_to_the_end(worker)


def test_chains_are_not_copied_while_copies_wait_for_the_store(redis, models, folder, store, clock):
    """A copy that failed is made again."""
    worker = worker_with(redis, models[0], store, large_bytes=1, clock=clock)
    saver = worker.parts.saver
    shard = start(redis, worker)
    folder.rename(folder.with_name("away"))
    folder.write_text("where a disk was mounted")
    turn_later(worker, clock)
    on_their_way = saver.copies
    turn_later(worker, clock)
    assert on_their_way
    assert saver.copies is on_their_way
    with pytest.raises(StoreFault):
        saver.run_once()
    folder.unlink()
    turn_later(worker, clock)
    saver.run_once()
    assert (folder / shard.job / "chains-0").exists()


def test_a_copy_that_took_long_delays_the_next_one(redis, models, clock):
    """A copy takes 20 ms of processor time here, and copies may take 1 % of the thread's time."""
    ticks = count()
    worker = worker_with(redis, models[0], clock=clock, cpu_clock=lambda: 0.02 * next(ticks))
    start(redis, worker)
    turn_later(worker, clock)
    assert worker.parts.saver.copies
    worker.parts.saver.run_once()
    turn_later(worker, clock, 1.9)
    assert not worker.parts.saver.copies
    turn_later(worker, clock, 0.2)
    assert worker.parts.saver.copies


def with_a_slow_redis(worker: WorkerLoop, clock: SimulatedClock) -> WorkerLoop:
    """Return the worker with a saver that may send Redis 100 bytes a second."""
    parts = worker.parts
    saver = SnapshotSaver(
        parts.shards,
        parts.writer,
        parts.messages,
        redis_bytes_per_s=100,
        clock=clock,
        cpu_clock=lambda: 0.0,
    )
    return WorkerLoop(worker.models, replace(parts, saver=saver), clock)


def test_large_chains_in_redis_are_saved_less_often(redis, models, clock):
    worker = with_a_slow_redis(worker_with(redis, models[0], clock=clock), clock)
    start(redis, worker)
    turn_later(worker, clock, 2.0)
    assert not worker.parts.saver.copies
    turn_later(worker, clock, 1000.0)
    assert worker.parts.saver.copies


def test_large_chains_that_redis_was_too_slow_for_are_not_sent_again_at_once(
    redis, models, monkeypatch, clock
):
    worker = with_a_slow_redis(worker_with(redis, models[0], clock=clock), clock)
    start(redis, worker)
    turn_later(worker, clock, 1000.0)
    assert worker.parts.saver.copies
    monkeypatch.setattr(worker.parts.writer, "save", raising(TimeoutError("no answer")))
    with pytest.raises(TimeoutError):
        worker.parts.saver.run_once()
    turn_later(worker, clock, 2.0)
    assert not worker.parts.saver.copies


@pytest.mark.parametrize(("room_of_chains", "is_due"), [(2, False), (3, True)])
def test_chains_that_redis_has_no_room_for_are_not_saved(
    redis, models, clock, room_of_chains, is_due
):
    worker = worker_with(redis, models[0], clock=clock)
    parts = worker.parts
    saver = SnapshotSaver(
        parts.shards,
        parts.writer,
        parts.messages,
        redis_saved_bytes=room_of_chains * models[0].chain_bytes,
        clock=clock,
    )
    begin(worker, post(redis, models[0], steps=STEPS), [0, 1, 2])
    models[0].engine.step()
    clock.pass_s(10)
    assert bool(saver.due(worker.active)) == is_due
