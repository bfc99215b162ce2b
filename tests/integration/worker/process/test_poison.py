"""Jobs whose network throws, in workers that end with it and are started again. The neighbours come to no harm."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from redis import Redis
from torch import Tensor

from models.diffusion.sampling import Network
from tests.support.loaded import load_tiny
from tests.support.processes import eventually
from tests.support.supervised import Killed, Supervised, ended, post, state
from worker.jobs.domain import Recipe, Shard, shards_of
from worker.jobs.keys import job_key, sha256_key
from worker.jobs.shard_queue import MAX_LOSSES
from worker.process.loaded_model import LoadedModel
from worker.redaction import client_reason

STEPS, POISONED_SEED, ROW = 40, 666, 20


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


def poison(model: LoadedModel, error: BaseException) -> None:
    """From here on the network throws wherever image 1 of the poisoned seed comes to its row."""
    healthy, seen = model.engine.pool.network, []

    def record(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x[0].clone())
        return healthy(x, t)

    def throw(x: Tensor, t: Tensor) -> Tensor:
        if any(torch.equal(row, deadly) for row in x):
            raise error
        return healthy(x, t)

    use(model, record)
    (request,) = model._requests(shard_of(model, POISONED_SEED), [1])
    model.engine.submit([request])
    while not model.engine.step():
        pass
    deadly = seen[ROW]
    use(model, throw)


def use(model: LoadedModel, network: Network) -> None:
    model.engine.pool.network = network


def shard_of(model: LoadedModel, seed: int) -> Shard:
    recipe = Recipe("tiny", model.card.sha256, "dpmpp_2m", STEPS, "fixed_small", 0.0, seed)
    return next(iter(shards_of("0" * 32, recipe, 0, 3, "local", "interactive")))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            Killed(),
            "3 workers in a row were lost while they ran this job, and got no further; post it again",
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
def test_a_network_that_throws_for_one_job_fails_that_job_with_the_reason_and_its_neighbours_finish_with_their_bytes(
    redis, model, supervised, error, said
):
    neighbours = {"a": 1, "b": 2, "c": 3}
    undisturbed = supervised()
    jobs = [post(redis, model, name, seed, steps=STEPS) for name, seed in neighbours.items()]
    eventually(lambda: ended(redis, *jobs), 60, "the neighbours have finished")
    undisturbed.stop()
    expected = {job: redis.hgetall(sha256_key(job)) for job in jobs}
    redis.flushall()

    poison(model, error)
    bad = post(redis, model, "f", POISONED_SEED, steps=STEPS)
    for name, seed in neighbours.items():
        post(redis, model, name, seed, steps=STEPS)
    worker = supervised()
    eventually(lambda: ended(redis, bad, *jobs), 100, "all jobs have ended")

    assert state(redis, bad) == b"failed"
    message = redis.hget(job_key(bad), "error_message").decode()
    assert said in message
    assert "secret" not in message
    assert {job: redis.hgetall(sha256_key(job)) for job in jobs} == expected
    assert {type(fault) for fault in worker.faults} == {type(error)}
    assert len(worker.faults) >= 1 + MAX_LOSSES, "the first attempt got further than none"


def test_a_reason_is_short_and_tells_no_path():
    assert (
        client_reason(ValueError("cannot open /root/weights.bin for C:\\key"))
        == "ValueError: cannot open … for …"
    )
    assert client_reason(KeyError()) == "KeyError"
    assert len(client_reason(RuntimeError("x" * 1000))) == 200
