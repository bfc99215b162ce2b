"""Chains that are saved by one worker and taken up by another, through Redis and through a results store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from redis import Redis

from models.checkpoints.catalog import Catalog
from tests.support.folders import write_model
from tests.support.networks import LatePool
from tests.support.parts import begin, let_lapse, post, run_to_the_end, state
from worker.calibration.cache import CalibrationCache
from worker.jobs import transitions
from worker.jobs.domain import Shard
from worker.jobs.keys import chains_key, sha256_key
from worker.process import snapshot_saver
from worker.process.loaded_model import LoadedModel
from worker.process.loop import WorkerLoop
from worker.process.messages import JobEnded
from worker.results.in_redis import InRedis
from worker.results.store import ResultsStore, StoreFault
from worker.results.url import open_store

STEPS = 12


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> list[LoadedModel]:
    root = tmp_path_factory.mktemp("models")
    write_model(root, "tiny")
    cache = CalibrationCache(root / "calibrations")
    return [
        LoadedModel(Catalog.read(root), "tiny", torch.device("cpu"), 64, "fp32", cache)
        for _ in range(2)
    ]


@pytest.fixture
def models(loaded: list[LoadedModel]) -> Iterator[list[LoadedModel]]:
    """The same model in two workers, empty."""
    yield loaded
    for model in loaded:
        model.engine.cancel([(f"{'a' * 32}-0", index) for index in range(3)])
        model.engine.image_steps = 0


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return tmp_path / "pictures"


def worker_with(redis: Redis, model: LoadedModel, store: ResultsStore) -> WorkerLoop:
    made = WorkerLoop(redis, {"tiny": model}, "cpu", store)
    made._shards.beat()
    return made


def model_of(worker: WorkerLoop) -> LoadedModel:
    return worker._models["tiny"]


def hashes(redis: Redis, shard: Shard) -> dict[bytes, bytes]:
    return redis.hgetall(sha256_key(shard.job))


def start(redis: Redis, worker: WorkerLoop, sampler: str = "ddpm", turns: int = 5) -> Shard:
    """A job of three images, some steps of which are done and saved."""
    shard = post(redis, model_of(worker), steps=STEPS, sampler=sampler)
    begin(worker, shard, [0, 1, 2])
    for _ in range(turns):
        worker._turn()
    worker._save_all()
    return shard


def take_over(redis: Redis, first: WorkerLoop, second: WorkerLoop) -> None:
    (held,) = first._held.values()
    let_lapse(redis, held.lease)
    second._intake.run_once()
    second._read_inbox()
    run_to_the_end(second)


def undisturbed(redis: Redis, model: LoadedModel, sampler: str) -> dict[bytes, bytes]:
    worker = worker_with(redis, model, InRedis())
    shard = start(redis, worker, sampler)
    run_to_the_end(worker)
    expected = hashes(redis, shard)
    redis.flushall()
    model.engine.image_steps = 0
    return expected


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp_2m"])
@pytest.mark.parametrize("large_bytes", [1, 1 << 20], ids=["in the store", "in Redis"])
def test_what_another_worker_takes_up_ends_in_the_same_bytes_and_nothing_of_it_stays(
    redis, models, pictures, monkeypatch, sampler, large_bytes
):
    monkeypatch.setattr("worker.process.job_writer.LARGE_BYTES", large_bytes)
    expected = undisturbed(redis, models[0], sampler)
    first, second = (
        worker_with(redis, model, open_store(f"file://{pictures}")) for model in models
    )
    shard = start(redis, first, sampler)
    assert (pictures / shard.job / "chains-0").exists() == (large_bytes == 1)
    take_over(redis, first, second)
    assert state(redis, shard) == "finished"
    assert hashes(redis, shard) == expected
    assert model_of(second).engine.image_steps == 3 * (STEPS - 5)
    assert sorted(path.name for path in (pictures / shard.job).iterdir()) == [
        "0.png",
        "1.png",
        "2.png",
    ]
    assert not redis.exists(chains_key(shard.job))


@pytest.mark.parametrize("store", ["the same, emptied", "none"])
def test_chains_that_the_store_no_longer_has_are_computed_again(
    redis, models, pictures, monkeypatch, store
):
    monkeypatch.setattr("worker.process.job_writer.LARGE_BYTES", 1)
    expected = undisturbed(redis, models[0], "ddpm")
    first = worker_with(redis, models[0], open_store(f"file://{pictures}"))
    shard = start(redis, first)
    (pictures / shard.job / "chains-0").unlink()
    second = worker_with(
        redis, models[1], InRedis() if store == "none" else open_store(f"file://{pictures}")
    )
    take_over(redis, first, second)
    assert hashes(redis, shard) == expected
    assert model_of(second).engine.image_steps == 3 * STEPS


def test_chains_of_a_job_that_was_cancelled_meanwhile_are_not_left_in_the_store(
    redis, models, pictures, monkeypatch
):
    monkeypatch.setattr("worker.process.job_writer.LARGE_BYTES", 1)
    worker = worker_with(redis, models[0], open_store(f"file://{pictures}"))
    shard = post(redis, model_of(worker), steps=STEPS)
    begin(worker, shard, [0, 1, 2])
    worker._turn()
    keys = transitions.transition_keys(shard.job, shard.job_priority)
    transitions.CANCEL.call(redis, **keys)
    worker._save_all()
    assert not list((pictures / shard.job).iterdir())
    assert worker._inbox.get_nowait() == JobEnded(shard.job)


def test_what_the_store_cannot_take_keeps_nothing_out_of_redis(
    redis, models, pictures, monkeypatch
):
    monkeypatch.setattr("worker.process.job_writer.LARGE_BYTES", 100)
    worker = worker_with(redis, models[0], open_store(f"file://{pictures}"))
    large = start(redis, worker)
    small = replace(large, number=1)
    monkeypatch.setattr(worker._store, "put_blob", throw(StoreFault("away")))
    with pytest.raises(StoreFault):
        worker._results.save([(large, bytes(100), 1), (small, b"chains", 1)])
    assert worker._results.saved(small) == b"chains"


@pytest.mark.parametrize("error", [StoreFault("away"), torch.OutOfMemoryError("no room")], ids=repr)
def test_what_cannot_be_saved_at_the_end_keeps_no_picture_and_no_shard(
    redis, models, monkeypatch, error
):
    worker = worker_with(redis, models[0], InRedis())
    shard = start(redis, worker)
    for _ in range(STEPS - 6):
        model_of(worker).engine.step([(shard.id, 0), (shard.id, 1)])
    worker._turn()  # two take their last row
    monkeypatch.setattr(worker, "_save_all", throw(error))
    worker._close()
    assert set(hashes(redis, shard)) == {b"0", b"1"}
    assert redis.lrange(f"rq:queue:{shard.queue}", 0, -1) == [shard.id.encode()]
    assert state(redis, shard) == "queued"


def test_a_picture_that_could_not_leave_the_engine_is_no_other_pictures_loss(
    redis, models, monkeypatch
):
    expected = undisturbed(redis, models[0], "ddpm")
    first = worker_with(redis, models[0], InRedis())
    shard = start(redis, first)
    engine = model_of(first).engine
    for _ in range(STEPS - 6):
        engine.step([(shard.id, 0)])
    with monkeypatch.context() as broken:
        broken.setattr(engine.pool, "copy_out", throw(torch.OutOfMemoryError("no room")))
        with pytest.raises(torch.OutOfMemoryError):
            first._turn()
    first._save_all()
    second = worker_with(redis, models[1], InRedis())
    take_over(redis, first, second)
    assert hashes(redis, shard) == expected
    assert model_of(second).engine.image_steps == STEPS + 2 * (STEPS - 6), (
        "two went on, one began anew"
    )


def throw(error: Exception) -> Callable[..., None]:
    def thrown(*_: object) -> None:
        raise error

    return thrown


@pytest.fixture
def due(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every shard that has come on is to be saved at once."""
    for name in ("SAVE_EVERY_S", "_SUSPECT_EVERY_S", "_LOOK_EVERY_S"):
        monkeypatch.setattr(snapshot_saver, name, 0.0)
    monkeypatch.setattr(snapshot_saver, "_SHARE", float("inf"))


@pytest.mark.usefixtures("due")
def test_a_shard_that_has_not_come_on_is_not_saved_again(redis, models):
    worker = worker_with(redis, models[0], InRedis())
    shard = start(redis, worker)
    redis.delete(chains_key(shard.job))
    worker._save()
    worker._saver.run_once()
    assert not worker._results.saved(shard)
    worker._turn()
    worker._saver.run_once()
    assert worker._results.saved(shard)


@pytest.mark.usefixtures("due")
def test_pictures_that_are_on_their_way_from_a_gpu_have_left_when_the_rest_is_saved(
    redis, models, monkeypatch
):
    expected = undisturbed(redis, models[0], "ddpm")
    engine, pool = models[0].engine, models[0].engine.pool
    monkeypatch.setattr(
        engine, "pool", LatePool(pool.network, pool.shape, pool.capacity, pool.device)
    )
    worker = worker_with(redis, models[0], InRedis())
    shard = start(redis, worker, turns=STEPS - 1)
    engine.step()
    assert (len(engine), engine.room) == (3, pool.capacity)
    worker._save_all()
    assert len(engine) == 0
    run_to_the_end(worker)
    assert state(redis, shard) == "finished"
    assert hashes(redis, shard) == expected


@pytest.mark.usefixtures("due")
def test_while_copies_wait_for_the_store_no_others_are_made_and_what_failed_is_copied_anew(
    redis, models, pictures, monkeypatch
):
    monkeypatch.setattr("worker.process.job_writer.LARGE_BYTES", 1)
    worker = worker_with(redis, models[0], open_store(f"file://{pictures}"))
    shard = start(redis, worker)
    pictures.rename(pictures.with_name("away"))
    pictures.write_text("where a disk was mounted")
    worker._turn()
    on_its_way = worker._saver._copies
    worker._turn()
    assert on_its_way
    assert worker._saver._copies is on_its_way
    with pytest.raises(StoreFault):
        worker._saver.run_once()
    pictures.unlink()
    worker._turn()
    worker._saver.run_once()
    assert (pictures / shard.job / "chains-0").exists()


@pytest.mark.usefixtures("due")
def test_a_copy_that_took_long_puts_the_next_one_off(redis, models, monkeypatch):
    """Copying has at most its share of the step's thread."""
    worker = worker_with(redis, models[0], InRedis())
    start(redis, worker)
    monkeypatch.setattr(snapshot_saver, "_SHARE", 1e-9)
    worker._turn()
    assert worker._saver._copies
    worker._saver.run_once()
    worker._turn()
    assert not worker._saver._copies


@pytest.mark.usefixtures("due")
def test_large_chains_in_redis_are_saved_less_often(redis, models, monkeypatch):
    monkeypatch.setattr(snapshot_saver, "_REDIS_BYTES_PER_S", 1e-3)
    worker = worker_with(redis, models[0], InRedis())
    start(redis, worker)
    worker._turn()
    assert not worker._saver._copies


@pytest.mark.usefixtures("due")
def test_large_chains_that_redis_was_too_slow_for_are_not_sent_again_at_once(
    redis, models, monkeypatch
):
    worker = worker_with(redis, models[0], InRedis())
    start(redis, worker)
    worker._turn()
    assert worker._saver._copies
    monkeypatch.setattr(snapshot_saver, "_REDIS_BYTES_PER_S", 1e-3)
    monkeypatch.setattr(
        worker._results, "save", lambda *_: (_ for _ in ()).throw(TimeoutError("no answer"))
    )
    with pytest.raises(TimeoutError):
        worker._saver.run_once()
    worker._turn()
    assert not worker._saver._copies
