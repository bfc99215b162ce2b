"""A worker's previews, before a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from redis import Redis
from redis.exceptions import ConnectionError

from models.diffusion.plans import compile_plan
from models.diffusion.sampling import chain, to_bytes
from tests.support.jobs import JOB, make_recipe, make_shard, make_shards
from tests.support.loaded import load_tiny
from tests.support.parts import raising
from tests.support.processes import eventually
from worker.engine.chain import ChainRequest
from worker.jobs.domain import Shard
from worker.jobs.keys import PREVIEWS, preview_key
from worker.process.active_shard import ActiveShard
from worker.process.intake import ChangeListener
from worker.process.load import WorkerLoad
from worker.process.loaded_model import LoadedModel
from worker.process.messages import MessageQueue
from worker.process.previews import PreviewSender
from worker.process.shard_leases import Execution, Lease

SEED, STEPS = 7, 6
# A busy machine may take longer to look than a preview lives.
LIVES_MS = 60_000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_tiny(tmp_path_factory.mktemp("models"))


def make_sender(redis: Redis, **options: int) -> PreviewSender:
    return PreviewSender(redis, lives_ms=LIVES_MS, **options)


def make_active(shard: Shard, model: LoadedModel) -> ActiveShard:
    lease = Lease(shard, Execution("e", shard.id, shard.queue))
    return ActiveShard(lease, model, set(shard.indices), copied_at=0.0)


@pytest.fixture
def active(model: LoadedModel) -> Iterator[list[ActiveShard]]:
    """A job of 70 images, in two shards, that nobody has stepped yet."""
    recipe = make_recipe(model.card.sha256, steps=STEPS, seed=SEED)
    active = [make_active(shard, model) for shard in make_shards(recipe, count=70)]
    for shard in active:
        model.admit(shard.lease.shard, sorted(shard.left), None)
    yield active
    for shard in active:
        model.engine.cancel(shard.chains())


def step(model: LoadedModel, *indices: int) -> None:
    """Let chains of the job take a step, and no others."""
    # One by one, because a machine may be so busy that no larger batch is used.
    for index in indices:
        model.step([(f"{JOB}-{index // 64}", index)])


def send(sender: PreviewSender, active: list[ActiveShard]) -> None:
    sender.copy(active)
    sender.run_once()


def found(redis: Redis, job: str = JOB) -> set[int]:
    return {int(key.rpartition(b":")[2]) for key in redis.keys(preview_key(job, "*"))}


def test_a_preview_is_what_the_plain_loop_takes_the_image_for(
    redis: Redis, model: LoadedModel, active: list[ActiveShard]
):
    for indices in ((3, 64), (3,), (3, 64), (64,), (64,)):
        step(model, *indices)
    sender = make_sender(redis)
    for index in (3, 64):
        sender.ask(JOB, index)
    send(sender, active)
    for index, row in ((3, 3), (64, 4)):
        with Image.open(BytesIO(redis.get(preview_key(JOB, index)))) as picture:
            made_by = json.loads(picture.text["ddpm"])
            pixels = np.array(picture).astype(int)
        assert (made_by["step"], made_by["index"], made_by["seed"]) == (row, index, SEED)
        assert made_by["precision"] == model.precision
        assert made_by["fingerprint"] == model.fingerprint
        plan = compile_plan(model.schedule, STEPS)
        states = list(chain(model.engine.pool.network, plan, SEED, [index], (1, 8, 8)))
        expected = to_bytes(states[row - 1][1])[0, 0].numpy().astype(int)
        assert np.abs(pixels - expected).max() <= 1


def test_a_preview_goes_by_itself(redis: Redis, model: LoadedModel, active: list[ActiveShard]):
    step(model, 0)
    sender = make_sender(redis)
    sender.ask(JOB, 0)
    send(sender, active)
    assert 0 < redis.pttl(preview_key(JOB, 0)) <= LIVES_MS


def test_a_request_for_an_image_without_a_step_here_is_forgotten(
    redis: Redis, model: LoadedModel, active: list[ActiveShard]
):
    sender = make_sender(redis)
    for job, index in ((JOB, 0), ("b" * 32, 0), (JOB, 70)):
        sender.ask(job, index)
    sender.copy(active)
    step(model, 0)
    sender.copy(active)
    assert not sender.copies
    assert found(redis) == set()


def test_previews_that_do_not_fit_together_go_one_after_the_other(
    redis: Redis, model: LoadedModel, active: list[ActiveShard]
):
    step(model, *range(8))
    sender = make_sender(redis, at_once=3)
    for index in range(5):
        sender.ask(JOB, index)
    sender.copy(active)
    sender.copy(active)  # the first are still on their way
    sender.run_once()
    assert found(redis) == {0, 1, 2}
    send(sender, active)
    assert found(redis) == set(range(5))
    assert not sender.copies
    assert not sender.requests


def test_large_previews_go_one_by_one(redis: Redis, model: LoadedModel, active: list[ActiveShard]):
    step(model, 0, 1)
    sender = make_sender(redis, at_once_bytes=1)
    for index in range(2):
        sender.ask(JOB, index)
    send(sender, active)
    assert found(redis) == {0}
    send(sender, active)
    assert found(redis) == {0, 1}


def test_requests_for_images_elsewhere_are_in_nobodys_way(
    redis: Redis, model: LoadedModel, active: list[ActiveShard]
):
    """Every worker hears every request."""
    step(model, 0)
    sender = make_sender(redis, most_requests=100)
    for index in range(200):
        sender.ask("b" * 32, index)
    sender.copy(active)
    sender.ask(JOB, 0)
    send(sender, active)
    assert found(redis) == {0}


def test_previews_are_sent_again_after_a_fault_of_redis(
    redis: Redis, model: LoadedModel, active: list[ActiveShard], monkeypatch: pytest.MonkeyPatch
):
    step(model, 0)
    sender = make_sender(redis)
    with monkeypatch.context() as away:
        away.setattr(redis, "pipeline", raising(ConnectionError("gone")))
        sender.ask(JOB, 0)
        sender.copy(active)
        with pytest.raises(ConnectionError):
            sender.run_once()
    sender.ask(JOB, 0)
    send(sender, active)
    assert found(redis) == {0}


def test_a_device_without_memory_for_a_preview_goes_on(
    redis: Redis,
    model: LoadedModel,
    active: list[ActiveShard],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    step(model, 0)
    sender = make_sender(redis)
    no_memory = torch.OutOfMemoryError("CUDA out of memory")
    with monkeypatch.context() as small:
        small.setattr(model.engine.pool, "copy_out_x_0_hat", raising(no_memory))
        sender.ask(JOB, 0)
        sender.copy(active)
    assert "no memory left" in caplog.text
    sender.ask(JOB, 0)
    send(sender, active)
    assert found(redis) == {0}


def test_a_worker_hears_requests_for_previews(redis: Redis):
    sender, messages = make_sender(redis), MessageQueue()
    listener = ChangeListener(redis, WorkerLoad(), messages, sender, "me", poll_every_s=0.1)

    def has_heard() -> bool:
        redis.publish(PREVIEWS, f"{JOB} 5")
        listener.run_once()
        return bool(sender.requests)

    eventually(has_heard, 60, "the worker has heard the request")
    assert sender.requests == [(JOB, 5)]
    assert messages.empty()


def test_a_preview_of_an_image_that_is_not_finite_harms_nobody(redis: Redis, model: LoadedModel):
    """The image fails when it has finished; until then somebody may look at it."""
    engine, plan = model.engine, compile_plan(model.schedule, STEPS)
    shard = make_shard(make_recipe(steps=STEPS), job="c" * 32, count=1)
    engine.submit([ChainRequest((shard.id, 0), shard.job, plan, SEED, 0)])
    engine.step()
    engine.pool.x_0_hat.fill_(torch.nan)
    sender = make_sender(redis)
    sender.ask(shard.job, 0)
    send(sender, [make_active(shard, model)])
    assert found(redis, shard.job) == {0}
    engine.cancel([(shard.id, 0)])
    engine.pool.x_0_hat.zero_()
