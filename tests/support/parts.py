"""A worker's parts before a real server, called in the order of a test."""

from __future__ import annotations

from redis import Redis

from worker.jobs.domain import Recipe, Shard, shards_of
from worker.jobs.keys import job_key, open_key
from worker.jobs.shard_queue import enqueue, reap
from worker.process.loaded_model import LoadedModel
from worker.process.loop import WorkerLoop
from worker.process.messages import ShardTaken
from worker.process.shard_leases import Lease


def post(
    redis: Redis,
    model: LoadedModel,
    count: int = 3,
    steps: int = 4,
    sampler: str = "ddpm",
    owner: str = "local",
    job: str = "a" * 32,
) -> Shard:
    """A job as the API records it; its first shard."""
    recipe = Recipe("tiny", model.card.sha256, sampler, steps, "fixed_small", 0.0, 7)
    shards = list(shards_of(job, recipe, 0, count, owner, "interactive"))
    fields = {
        "id": shards[0].job,
        "state": "queued",
        "count": count,
        "priority": "interactive",
        "results_ttl_s": 60,
        "attempts": 0,
    }
    with redis.pipeline() as pipe:
        pipe.hset(job_key(shards[0].job), mapping=fields)
        pipe.zadd(open_key("interactive"), {shards[0].job: 1})
        enqueue(shards, pipe)
        pipe.execute()
    return shards[0]


def state(redis: Redis, shard: Shard) -> str:
    return redis.hget(job_key(shard.job), "state").decode()


def let_lapse(redis: Redis, lease: Lease) -> None:
    """As if no heartbeat had come for long; whoever looks puts the shard back."""
    redis.zadd(lease.started_key, {lease.execution.composite_key: 0})
    assert reap([lease.queue]) == [(lease.shard.id, "requeued")]


def begin(worker: WorkerLoop, shard: Shard, indices: list[int]) -> Lease:
    """Taken and admitted, as by the intake and the loop."""
    lease = worker._shards.take([shard.queue])
    worker._results.start(shard, 1)
    worker._heed(ShardTaken(lease, indices, None))
    return lease


def run_to_the_end(worker: WorkerLoop) -> None:
    while worker._held:
        worker._turn()
    worker._outbox.flush()
