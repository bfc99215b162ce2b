"""Jobs in a fleet whose workers draw other bits: each stays with workers that draw the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import pytest
from PIL import Image
from redis import Redis

from tests.support.clock import SimulatedClock
from tests.support.jobs import state_of
from tests.support.loaded import load_tiny
from tests.support.parts import (
    build_worker,
    handle_all,
    let_lapse,
    post,
    run_to_the_end,
    take,
)
from tests.support.worker import IdleWorker
from worker.jobs.domain import Shard
from worker.jobs.keys import WORKERS, chains_key, job_key, png_key, rotation_name, sha256_key
from worker.process.intake import ELSEWHERE_LEAST_S, Intake
from worker.process.loaded_model import LoadedModel
from worker.process.loop import WorkerLoop

OTHER = "0123456789ab"
STEPS = 6


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, LoadedModel]:
    root = tmp_path_factory.mktemp("models")
    return load_tiny(root / "one", precision="fp32"), load_tiny(root / "two", precision="fp32")


@pytest.fixture
def models(
    loaded: tuple[LoadedModel, LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[LoadedModel, LoadedModel]]:
    """The same model in two workers, of which the second says that it draws other bits."""
    monkeypatch.setattr(loaded[1], "fingerprint", OTHER)
    for model in loaded:
        model.engine.image_steps = 0
    yield loaded
    for model in loaded:
        assert not len(model.engine)


@pytest.fixture
def workers(redis: Redis, models: tuple[LoadedModel, LoadedModel]) -> list[WorkerLoop]:
    """One worker for each model. They know of each other."""
    workers = [build_worker(redis, model) for model in models]
    for worker in (*workers, *workers):
        worker.parts.heartbeat.announce()
    return workers


def intake_of(worker: WorkerLoop, clock: Callable[[], float]) -> Intake:
    """Return another intake for the worker; it asks an empty queue again at once."""
    parts = worker.parts
    return Intake(
        parts.shards,
        parts.writer,
        worker.models,
        parts.load,
        parts.messages,
        others_fingerprints=parts.heartbeat.others_fingerprints,
        poll_every_s=0.0,
        clock=clock,
    )


def kill(redis: Redis, worker: WorkerLoop, survivor: WorkerLoop) -> None:
    """Let the worker vanish, as after a kill and 15 seconds; the survivor finds out."""
    redis.hdel(WORKERS, worker.parts.shards.name)
    for lease in worker.parts.shards.leases:
        let_lapse(redis, lease)
    for active in list(worker.active):
        active.model.engine.cancel(active.chains())
    for _ in range(2):
        survivor.parts.heartbeat.announce()


def finish_all(worker: WorkerLoop, intake: Intake) -> None:
    """Take and finish shards until nothing is left to take."""
    before = -1
    while before < worker.models["tiny"].engine.image_steps:
        before = worker.models["tiny"].engine.image_steps
        intake.run_once()
        handle_all(worker)
        run_to_the_end(worker)


def uniform(redis: Redis, shard: Shard) -> bool:
    return not redis.hexists(job_key(shard.job), "uniform")


def hashes(redis: Redis, shard: Shard) -> dict[bytes, bytes]:
    return redis.hgetall(sha256_key(shard.job))


def test_a_job_of_several_shards_is_drawn_by_workers_of_one_fingerprint(redis, models, workers):
    first, second = workers
    shard = post(redis, models[0], count=3 * 64, steps=2)
    take(first)
    clock = SimulatedClock()
    intake = intake_of(second, clock)
    for _ in range(10):
        intake.run_once()
    assert second.parts.messages.empty()
    assert second.parts.shards.leases == []
    finish_all(first, intake_of(first, clock))
    assert state_of(redis, shard.job) == "finished"
    assert uniform(redis, shard)
    assert models[1].engine.image_steps == 0


def test_a_job_whose_worker_is_killed_goes_on_elsewhere_and_says_so(redis, models, workers):
    first, second = workers
    shard = post(redis, models[0], count=3 * 64, steps=2)
    take(first)
    run_to_the_end(first)
    assert uniform(redis, shard)
    take(first)
    kill(redis, first, second)
    finish_all(second, intake_of(second, SimulatedClock()))
    assert state_of(redis, shard.job) == "finished"
    assert not uniform(redis, shard)
    assert models[1].engine.image_steps == 2 * 64 * 2
    made_by = {
        index: json.loads(Image.open(BytesIO(png)).info["ddpm"])["fingerprint"]
        for index, png in redis.hgetall(png_key(shard.job)).items()
    }
    assert made_by[b"0"] == models[0].fingerprint
    assert made_by[b"191"] == OTHER


def test_a_job_that_has_moved_stays_where_it_is(redis, models, workers):
    """Otherwise each of its parts would begin anew whenever it changes hands."""
    first, second = workers
    shard = post(redis, models[0], count=3 * 64, steps=2)
    take(first)
    run_to_the_end(first)
    kill(redis, first, second)
    take(second)
    for worker in workers:
        worker.parts.heartbeat.announce()
    intake = intake_of(first, SimulatedClock())
    for _ in range(5):
        intake.run_once()
    assert first.parts.messages.empty()
    finish_all(second, intake_of(second, SimulatedClock()))
    assert state_of(redis, shard.job) == "finished"


def start_and_save(redis: Redis, worker: WorkerLoop) -> Shard:
    shard = post(redis, worker.models["tiny"], steps=STEPS)
    take(worker)
    for _ in range(3):
        worker.run_once()
    worker.save_all()
    assert redis.exists(chains_key(shard.job))
    return shard


@pytest.mark.parametrize("saved_by", ["the same", "a version without fingerprints"])
def test_a_takeover_within_a_fingerprint_goes_on_where_the_chains_were_saved(
    redis, models, workers, monkeypatch, saved_by
):
    monkeypatch.setattr(models[1], "fingerprint", models[0].fingerprint)
    undisturbed = post(redis, models[0], steps=STEPS, job="b" * 32)
    take(workers[0])
    run_to_the_end(workers[0])
    models[0].engine.image_steps = 0
    if saved_by == "a version without fingerprints":
        monkeypatch.setattr(models[0], "fingerprint", "")
    shard = start_and_save(redis, workers[0])
    done = models[0].engine.image_steps
    assert 0 < done < 3 * STEPS
    kill(redis, workers[0], workers[1])
    take(workers[1])
    run_to_the_end(workers[1])
    assert hashes(redis, shard) == hashes(redis, undisturbed)
    assert models[1].engine.image_steps == 3 * STEPS - done
    assert uniform(redis, shard)


def test_chains_of_another_fingerprint_begin_anew(redis, models, workers, caplog):
    shard = start_and_save(redis, workers[0])
    kill(redis, workers[0], workers[1])
    take(workers[1])
    run_to_the_end(workers[1])
    assert state_of(redis, shard.job) == "finished"
    assert models[1].engine.image_steps == 3 * STEPS
    assert f"its worker's fingerprint is {models[0].fingerprint}, this one's is {OTHER}" in (
        caplog.text
    )


def test_shards_of_another_fingerprint_hold_up_no_job_and_are_not_taken_all_the_time(
    redis, models, workers, monkeypatch
):
    first, second = workers
    clock = SimulatedClock()
    for number in range(3):
        post(redis, models[0], job=f"theirs{number}", count=1)
    take(first)
    for lease in first.parts.shards.leases:
        first.parts.shards.give_back(lease, "back")
    handle_all(first)
    drop(first)
    post(redis, models[0], job="ours", count=1)
    takes: list[Any] = []
    take_up_to = second.parts.shards.take_up_to
    monkeypatch.setattr(
        second.parts.shards,
        "take_up_to",
        lambda most, wanted, **options: takes.append(wanted) or take_up_to(most, wanted, **options),
    )
    intake = intake_of(second, clock)
    for _ in range(20):
        intake.run_once()
    taken = second.parts.messages.get_nowait().lease
    assert (taken.shard.job, second.parts.messages.empty()) == ("ours", True)
    interactive = rotation_name("interactive", "tiny")
    assert sum(interactive in wanted for wanted in takes) <= 4
    assert interactive not in intake.wanted()
    clock.pass_s(ELSEWHERE_LEAST_S)
    assert interactive in intake.wanted()


def drop(worker: WorkerLoop) -> None:
    """Drop what the worker has in its engine."""
    for active in list(worker.active):
        active.model.engine.cancel(active.chains())


def test_a_worker_asks_for_nothing_before_it_knows_the_others(redis, models):
    """Its first take would find nobody of the job's fingerprint, and take the job over."""
    worker = build_worker(redis, models[1])
    asked_before_it_knew: list[bool] = []
    take_up_to = worker.parts.shards.take_up_to

    def stop_at_the_first_take(*wanted: Any, **options: Any) -> list[Any]:
        known = worker.parts.heartbeat.others_fingerprints("tiny")
        asked_before_it_knew.append(not known)
        worker.request_stop()
        return take_up_to(*wanted, **options)

    IdleWorker(redis).announce(fingerprint=models[0].fingerprint)
    worker.parts.shards.take_up_to = stop_at_the_first_take
    worker.run()
    assert asked_before_it_knew[0] is False


def test_a_fingerprint_counts_for_one_announcement_after_it_was_last_seen(redis, workers, models):
    """Entries have lapsed after an outage, and workers announce themselves one by one."""
    heartbeat = workers[1].parts.heartbeat
    redis.delete(WORKERS)
    heartbeat.announce()
    assert heartbeat.others_fingerprints("tiny") == {models[0].fingerprint}
    heartbeat.announce()
    assert heartbeat.others_fingerprints("tiny") == set()
    assert heartbeat.others_fingerprints("another model") == set()
