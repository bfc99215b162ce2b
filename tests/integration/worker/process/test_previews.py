"""A worker's previews, before a real server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from io import BytesIO
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from redis import Redis
from redis.exceptions import ConnectionError

from models.diffusion.plans import compile_plan
from models.diffusion.sampling import chain, to_bytes
from tests.support.loaded import load_tiny
from tests.support.processes import eventually
from worker.engine.chain import ChainRequest
from worker.jobs.domain import Recipe, Shard, shards_of
from worker.jobs.keys import PREVIEWS, preview_key
from worker.process import previews
from worker.process.active_shard import ActiveShard
from worker.process.intake import ChangeListener
from worker.process.load import WorkerLoad
from worker.process.loaded_model import LoadedModel
from worker.process.messages import MessageQueue
from worker.process.previews import PreviewSender
from worker.process.shard_leases import Lease

JOB, SEED, STEPS, LIVES_MS = "a" * 32, 7, 6, 60_000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_tiny(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def long_lived(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take longer to look than a preview lives."""
    monkeypatch.setattr(previews, "PREVIEW_LIVES_MS", LIVES_MS)


def lease(shard: Shard) -> Lease:
    return Lease(shard, *cast("Any", (None, None, None)))


@pytest.fixture
def held(model: LoadedModel) -> Iterator[list[ActiveShard]]:
    """A job of 70 images, in two shards, that nobody has stepped yet."""
    recipe = Recipe("tiny", model.card.sha256, "ddpm", STEPS, "fixed_small", 0.0, SEED)
    held = [
        ActiveShard(lease(shard), model, set(shard.indices))
        for shard in shards_of(JOB, recipe, 0, 70, "local", "interactive")
    ]
    for shard in held:
        model.admit(shard.lease.shard, sorted(shard.left), None)
    yield held
    for shard in held:
        model.engine.cancel(shard.chains())


def step(model: LoadedModel, *indices: int) -> None:
    """Chains of the job take a step, and no others."""
    for index in indices:  # one by one: a machine may be so busy that no larger batch is used
        model.step([(f"{JOB}-{index // 64}", index)])


def send(asked: PreviewSender, held: list[ActiveShard]) -> None:
    asked.take(held)
    asked.run_once()


def found(redis: Redis, job: str = JOB) -> set[int]:
    return {int(key.rpartition(b":")[2]) for key in redis.keys(preview_key(job, "*"))}


def test_a_preview_is_what_the_plain_loop_takes_the_image_for(
    redis: Redis, model: LoadedModel, held: list[ActiveShard]
):
    for indices in ((3, 64), (3,), (3, 64), (64,), (64,)):
        step(model, *indices)
    asked = PreviewSender(redis)
    for index in (3, 64):
        asked.ask(JOB, index)
    send(asked, held)
    for index, row in ((3, 3), (64, 4)):
        with Image.open(BytesIO(redis.get(preview_key(JOB, index)))) as picture:
            told = json.loads(picture.text["ddpm"])
            assert (told["step"], told["index"], told["seed"], told["precision"]) == (
                row,
                index,
                SEED,
                model.precision,
            )
            pixels = np.array(picture).astype(int)
        plan = compile_plan(model.schedule, STEPS)
        states = list(chain(model.engine.pool.network, plan, SEED, [index], (1, 8, 8)))
        expected = to_bytes(states[row - 1][1])[0, 0].numpy().astype(int)
        assert np.abs(pixels - expected).max() <= 1


def test_a_preview_goes_by_itself(redis: Redis, model: LoadedModel, held: list[ActiveShard]):
    step(model, 0)
    asked = PreviewSender(redis)
    asked.ask(JOB, 0)
    send(asked, held)
    assert 0 < redis.pttl(preview_key(JOB, 0)) <= LIVES_MS


def test_what_is_not_here_or_has_taken_no_step_is_forgotten(
    redis: Redis, model: LoadedModel, held: list[ActiveShard]
):
    asked = PreviewSender(redis)
    for job, index in ((JOB, 0), ("b" * 32, 0), (JOB, 70)):
        asked.ask(job, index)
    asked.take(held)
    step(model, 0)
    asked.take(held)
    assert not asked._work.is_set()
    assert found(redis) == set()


def test_more_than_fit_go_one_after_the_other(
    redis: Redis, model: LoadedModel, held: list[ActiveShard], monkeypatch: pytest.MonkeyPatch
):
    step(model, *range(8))
    monkeypatch.setattr(previews, "_AT_ONCE", 3)
    asked = PreviewSender(redis)
    for index in range(5):
        asked.ask(JOB, index)
    asked.take(held)
    asked.take(held)  # the first are still on their way
    asked.run_once()
    assert found(redis) == {0, 1, 2}
    send(asked, held)
    assert found(redis) == set(range(5))
    assert not asked._work.is_set(), "and the thread has nothing to do"


def test_large_ones_go_one_by_one(
    redis: Redis, model: LoadedModel, held: list[ActiveShard], monkeypatch: pytest.MonkeyPatch
):
    step(model, 0, 1)
    monkeypatch.setattr(previews, "_AT_ONCE_BYTES", 1)
    asked = PreviewSender(redis)
    for index in range(2):
        asked.ask(JOB, index)
    send(asked, held)
    assert found(redis) == {0}
    send(asked, held)
    assert found(redis) == {0, 1}


def test_what_others_have_is_in_nobodys_way(
    redis: Redis, model: LoadedModel, held: list[ActiveShard], monkeypatch: pytest.MonkeyPatch
):
    """Every worker hears every wish."""
    step(model, 0)
    monkeypatch.setattr(previews, "_MOST_ASKED", 100)
    asked = PreviewSender(redis)
    for index in range(200):
        asked.ask("b" * 32, index)
    asked.take(held)
    asked.ask(JOB, 0)
    send(asked, held)
    assert found(redis) == {0}


def test_after_a_fault_of_redis_there_are_previews_again(
    redis: Redis, model: LoadedModel, held: list[ActiveShard], monkeypatch: pytest.MonkeyPatch
):
    step(model, 0)
    asked = PreviewSender(redis)
    with monkeypatch.context() as away:
        away.setattr(asked, "_redis", Redis(port=1))
        asked.ask(JOB, 0)
        asked.take(held)
        with pytest.raises(ConnectionError):
            asked.run_once()
    asked.ask(JOB, 0)
    send(asked, held)
    assert found(redis) == {0}


def test_a_device_without_memory_for_a_look_goes_on(
    redis: Redis,
    model: LoadedModel,
    held: list[ActiveShard],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    def full(_slots: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    step(model, 0)
    asked = PreviewSender(redis)
    with monkeypatch.context() as small:
        small.setattr(model.engine.pool, "copy_out_x_0_hat", full)
        asked.ask(JOB, 0)
        asked.take(held)
    assert "no memory left" in caplog.text
    asked.ask(JOB, 0)
    send(asked, held)
    assert found(redis) == {0}


def test_a_worker_hears_who_wants_one(redis: Redis):
    asked, inbox = PreviewSender(redis), MessageQueue()
    listener = ChangeListener(redis, WorkerLoad(), inbox, asked)
    stop = threading.Event()

    def listen() -> None:
        while not stop.is_set():
            listener.run_once()

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        eventually(lambda: redis.publish(PREVIEWS, f"{JOB} 5") and asked._asked, 5, "it was heard")
    finally:
        stop.set()
        thread.join()
    assert list(asked._asked) == [(JOB, 5)]
    assert inbox.empty()


def test_a_preview_of_what_is_not_finite_harms_nobody(redis: Redis, model: LoadedModel):
    """Its image will fail when it has finished; until then somebody may look at it."""
    engine, plan = model.engine, compile_plan(model.schedule, STEPS)
    shard = next(
        shards_of(
            "c" * 32,
            Recipe("tiny", "", "ddpm", STEPS, "fixed_small", 0.0, SEED),
            0,
            1,
            "local",
            "interactive",
        )
    )
    engine.submit([ChainRequest((shard.id, 0), shard.job, plan, SEED, 0)])
    engine.step()
    engine.pool.x_0_hat.fill_(torch.nan)
    asked = PreviewSender(redis)
    asked.ask(shard.job, 0)
    asked.take([ActiveShard(lease(shard), model, {0})])
    asked.run_once()
    assert found(redis, shard.job) == {0}
    engine.cancel([(shard.id, 0)])
    engine.pool.x_0_hat.zero_()
