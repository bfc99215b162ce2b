"""Jobs whose network throws, in workers that end with it and are started again. The neighbours come to no harm."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from redis import Redis
from torch import Tensor

from models.catalog import Catalog
from tests.support.folders import write_model
from tests.support.processes import eventually
from worker import contract
from worker.contract import Recipe, job_key, open_key, shards_of
from worker.loaded import LoadedModel
from worker.pool import Network
from worker.queue import MAX_LOSSES, enqueue
from worker.reason import reason_of
from worker.service import Worker
from worker.store import InRedis

STEPS, POISONED_SEED, ROW = 40, 666, 20


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    root = tmp_path_factory.mktemp("models")
    write_model(root, "tiny")
    return LoadedModel(Catalog.read(root), "tiny", torch.device("cpu"), 256, "fp32")


@pytest.fixture
def model(loaded: LoadedModel) -> Iterator[LoadedModel]:
    healthy = loaded.engine.pool.network
    yield loaded
    loaded.engine.pool.network = healthy


class Killed(BaseException):
    """Ends a worker as SIGKILL or a segmentation fault would: it does nothing more."""


class Supervised:
    """A worker in a thread that is started again, with an empty engine, whenever it breaks off or is killed."""

    def __init__(self, redis: Redis, model: LoadedModel) -> None:
        self.redis, self.model = redis, model
        self.faults: list[BaseException] = []
        self._current, self._over = Worker(redis, {"tiny": model}, "cpu", InRedis()), threading.Event()
        self._thread = threading.Thread(target=self._keep_running)
        self._thread.start()

    def _keep_running(self) -> None:
        while not self._over.is_set():
            try:
                self._current.run()
            except BaseException as error:
                self.faults.append(error)
                if isinstance(error, Killed):
                    self._let_lapse()
                self.model.engine.cancel(list(self.model.engine._chains))
                self._current = Worker(self.redis, {"tiny": self.model}, "cpu", InRedis())

    def _let_lapse(self) -> None:
        self._current.crew.stop(10)
        for lease in self._current._shards._leases.values():
            self.redis.zadd(lease.started_key, {lease.execution.composite_key: 0})

    def stop(self) -> None:
        self._over.set()
        while self._thread.is_alive():
            self._current.crew.stopping.set()
            self._thread.join(0.1)


@pytest.fixture
def supervised(redis: Redis, model: LoadedModel) -> Iterator[Callable[[], Supervised]]:
    started: list[Supervised] = []

    def start() -> Supervised:
        started.append(Supervised(redis, model))
        return started[-1]

    yield start
    for one in started:
        one.stop()


def post(redis: Redis, model: LoadedModel, name: str, seed: int, count: int = 3) -> str:
    recipe = Recipe("tiny", model.card.sha256, "dpmpp_2m", STEPS, "fixed_small", 0.0, seed)
    job, shards = name * 32, list(shards_of(name * 32, recipe, 0, count, "local", "interactive"))
    fields = {"id": job, "state": "queued", "count": count, "priority": "interactive", "results_ttl_s": 600, "attempts": 0}
    with redis.pipeline() as pipe:
        pipe.hset(job_key(job), mapping=fields)
        pipe.zadd(open_key("interactive"), {job: 1})
        enqueue(shards, pipe)
        pipe.publish(contract.CHANGES, f"{job} queued")
        pipe.execute()
    return job


def state(redis: Redis, job: str) -> bytes:
    return redis.hget(job_key(job), "state")


def ended(redis: Redis, *jobs: str) -> bool:
    return all(state(redis, job) not in (b"queued", b"running") for job in jobs)


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


def shard_of(model: LoadedModel, seed: int) -> contract.Shard:
    recipe = Recipe("tiny", model.card.sha256, "dpmpp_2m", STEPS, "fixed_small", 0.0, seed)
    return next(iter(shards_of("0" * 32, recipe, 0, 3, "local", "interactive")))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Killed(), "3 workers in a row were lost while they ran this job, and got no further; post it again"),
        (RuntimeError("a kernel failed in /opt/secret/path.cu\nand more"), "RuntimeError: a kernel failed in …"),
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
    jobs = [post(redis, model, name, seed) for name, seed in neighbours.items()]
    eventually(lambda: ended(redis, *jobs), 60, "the neighbours have finished")
    undisturbed.stop()
    expected = {job: redis.hgetall(contract.sha256_key(job)) for job in jobs}
    redis.flushall()

    poison(model, error)
    bad = post(redis, model, "f", POISONED_SEED)
    for name, seed in neighbours.items():
        post(redis, model, name, seed)
    worker = supervised()
    eventually(lambda: ended(redis, bad, *jobs), 100, "all jobs have ended")

    assert state(redis, bad) == b"failed"
    message = redis.hget(job_key(bad), "error_message").decode()
    assert said in message
    assert "secret" not in message
    assert {job: redis.hgetall(contract.sha256_key(job)) for job in jobs} == expected
    assert {type(fault) for fault in worker.faults} == {type(error)}
    assert len(worker.faults) >= 1 + MAX_LOSSES, "the first attempt got further than none"


def test_a_reason_is_short_and_tells_no_path():
    assert reason_of(ValueError("cannot open /root/weights.bin for C:\\key")) == "ValueError: cannot open … for …"
    assert reason_of(KeyError()) == "KeyError"
    assert len(reason_of(RuntimeError("x" * 1000))) == 200
