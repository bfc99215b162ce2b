"""Jobs whose network throws, in workers that end with it and are started again.

Their neighbours come to no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from redis import Redis
from torch import Tensor

from tests.support.jobs import have_ended, make_recipe, make_shard, post_job, state_of
from tests.support.loaded import load_tiny
from tests.support.processes import eventually
from tests.support.supervised import Killed, Supervised
from worker.jobs.domain import Recipe
from worker.jobs.keys import job_key, sha256_key
from worker.jobs.shard_queue import MAX_LOSSES
from worker.process.loaded_model import LoadedModel
from worker.redaction import client_reason

STEPS, POISONED_SEED, ROW = 40, 666, 20
NEIGHBOURS = {"a" * 32: 1, "b" * 32: 2, "c" * 32: 3}
POISONED = "f" * 32


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_tiny(tmp_path_factory.mktemp("models"), 256, "fp32")


@pytest.fixture
def model(loaded: LoadedModel) -> Iterator[LoadedModel]:
    healthy = loaded.engine.pool.network
    yield loaded
    loaded.engine.pool.network = healthy


@pytest.fixture
def supervised(redis: Redis, model: LoadedModel) -> Iterator[Callable[[], Supervised]]:
    started: list[Supervised] = []

    def start() -> Supervised:
        started.append(Supervised(redis, model))
        return started[-1]

    yield start
    for one in started:
        one.stop()


def recipe_of(model: LoadedModel, seed: int) -> Recipe:
    return make_recipe(model.card.sha256, sampler="dpmpp_2m", steps=STEPS, seed=seed)


def poison(model: LoadedModel, error: BaseException) -> None:
    """Let the network throw from now on wherever image 1 of the poisoned seed comes to its row."""
    pool = model.engine.pool
    healthy, seen = pool.network, []

    def record(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x[0].clone())
        return healthy(x, t)

    def throw(x: Tensor, t: Tensor) -> Tensor:
        if any(torch.equal(row, deadly) for row in x):
            raise error
        return healthy(x, t)

    pool.network = record
    model.admit(make_shard(recipe_of(model, POISONED_SEED)), [1], None)
    while not model.engine.step():
        pass
    deadly = seen[ROW]
    pool.network = throw


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            Killed(),
            "3 workers in a row were lost while they ran this job, and got no further; "
            "post it again",
        ),
        (
            RuntimeError("a kernel failed in /opt/secret/path.cu\nand more"),
            "RuntimeError: a kernel failed in …",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
            "OutOfMemoryError: CUDA out of memory. Tried to",
        ),
    ],
)
def test_a_network_that_throws_for_one_job_fails_that_job_only(
    redis, model, supervised, error, reason
):
    """The job says why, and its neighbours finish with their bytes."""
    undisturbed = supervised()
    for job, seed in NEIGHBOURS.items():
        post_job(redis, recipe_of(model, seed), job=job)
    eventually(lambda: have_ended(redis, *NEIGHBOURS), 100, "the neighbours have finished")
    undisturbed.stop()
    expected = {job: redis.hgetall(sha256_key(job)) for job in NEIGHBOURS}
    redis.flushall()

    poison(model, error)
    for job, seed in {POISONED: POISONED_SEED, **NEIGHBOURS}.items():
        post_job(redis, recipe_of(model, seed), job=job)
    worker = supervised()
    eventually(lambda: have_ended(redis, POISONED, *NEIGHBOURS), 100, "all jobs have ended")

    assert state_of(redis, POISONED) == "failed"
    message = redis.hget(job_key(POISONED), "error_message").decode()
    assert reason in message
    assert "secret" not in message
    assert {job: redis.hgetall(sha256_key(job)) for job in NEIGHBOURS} == expected
    assert {type(fault) for fault in worker.faults} == {type(error)}
    assert len(worker.faults) >= 1 + MAX_LOSSES, "the first attempt got further than none"


def test_a_reason_is_short_and_tells_no_path():
    error = ValueError("cannot open /root/weights.bin for C:\\key")
    assert client_reason(error) == "ValueError: cannot open … for …"
    assert client_reason(KeyError()) == "KeyError"
    assert len(client_reason(RuntimeError("x" * 1000))) == 200
