"""A worker's parts before a real server, called in the order of a test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from redis import Redis

from tests.support.jobs import make_recipe, post_job
from worker.__main__ import build
from worker.jobs.domain import Shard
from worker.jobs.keys import LEASES
from worker.jobs.shard_queue import reap
from worker.process.loaded_model import LoadedModel
from worker.process.loop import WorkerLoop
from worker.process.messages import ShardTaken
from worker.process.shard_leases import Lease
from worker.results.in_redis import InRedis
from worker.results.store import ResultsStore


def build_worker(
    redis: Redis, model: LoadedModel, store: ResultsStore | None = None, **options: Any
) -> WorkerLoop:
    """Return a worker that serves the model as `tiny`, has signed on, and runs no threads.

    `options` are those of `worker.__main__.build`.
    """
    worker = build(redis, {"tiny": model}, "cpu", store or InRedis(), **options)
    worker.parts.shards.heartbeat()
    return worker


def post(
    redis: Redis, model: LoadedModel, *, steps: int = 4, sampler: str = "ddpm", **options: Any
) -> Shard:
    """Post a job for the model, and return its first shard.

    `options` are those of `tests.support.jobs.make_shards`.
    """
    recipe = make_recipe(model.card.sha256, steps=steps, sampler=sampler)
    return post_job(redis, recipe, **options)


def let_lapse(redis: Redis, lease: Lease) -> None:
    """Let the lease lapse, as if no heartbeat had come for long; a reaper puts the shard back."""
    redis.zadd(LEASES, {lease.execution.composite_key: 0})
    assert reap(redis) == [(lease.shard.id, "requeued")]


def take(worker: WorkerLoop) -> None:
    """Let the intake take a shard, and the loop admit it."""
    worker.parts.intake.run_once()
    handle_all(worker)


def handle_all(worker: WorkerLoop) -> None:
    """Let the loop handle all messages that wait."""
    while not worker.parts.messages.empty():
        worker.handle(worker.parts.messages.get_nowait())


def begin(worker: WorkerLoop, shard: Shard, indices: list[int]) -> Lease:
    """Take the shard and admit these images of it, as the intake and the loop do."""
    lease = worker.parts.shards.take([shard.rotation])
    worker.parts.writer.start(shard, 1)
    worker.handle(ShardTaken(lease, indices, None))
    return lease


def run_to_the_end(worker: WorkerLoop) -> None:
    """Finish all that the worker holds, and send it."""
    while worker.active:
        worker.run_once()
    worker.parts.sender.flush()


def raising(error: Exception) -> Callable[..., NoReturn]:
    """Return a function that raises the error, whatever it is called with."""

    def fail(*_: object, **__: object) -> NoReturn:
        raise error

    return fail
