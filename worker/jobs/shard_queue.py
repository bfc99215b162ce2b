"""Shards in RQ's queues, for whoever posts, withdraws or reaps them. Knows RQ, but not its worker.

RQ owns the job format, the key names and the worker registration. Every change of a shard's state
is one Lua script of ours, because RQ's own changes are neither atomic nor fenced
(docs/decisions/0003). RQ is pinned, because its key layout is private.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from redis import Redis
from rq import Queue, Retry, worker_registration
from rq.executions import WORKER_EXECUTIONS_KEY_TEMPLATE
from rq.job import Job
from rq.serializers import JSONSerializer

from worker.jobs.domain import Origin, Priority, Shard
from worker.jobs.keys import FAILED_SHARDS, QUEUE_NAMES, SHARD_PREFIX, rotation_name
from worker.jobs.policy import UNFINISHED_TTL_S
from worker.jobs.scripts import Client, load

# A worker that is not heard of for this long has lost its shards.
LEASE_S = 15.0
# A shard fails when it loses this many workers, none of which got further than those before.
MAX_LOSSES = 3
# A failed shard is kept until its job has been failed, or for this long.
FAILED_TTL_S = 3600
# A label: it is never imported, since workers read the arguments only.
_FUNC = "worker.sample"
# RQ's queues need a connection to be made. This one never connects.
_NO_CONNECTION = Redis()
_NO_ORIGIN = Origin()
_WITHDRAW = load("withdraw_shard")
_REAP = load("reap_shards")
_SWEEP = load("sweep_queues")
_JOIN = load("join_rotations")
# Ten milliseconds of Redis.
_MOVED_AT_ONCE = 1000


def make_queue(name: str, connection: Any) -> Queue:
    """Return RQ's queue of that name, which reads and writes JSON.

    A queue without a serializer would unpickle what it finds.
    """
    queue = Queue(name, connection=cast("Redis", connection), serializer=JSONSerializer)
    # Otherwise the first enqueue asks the server for it, with a blocking INFO.
    queue.redis_server_version = (6, 2, 0)
    return queue


def shard_queues(redis: Redis) -> list[Queue]:
    """Return all queues that a shard was ever posted to, by name.

    Those of models that are in no catalog any more are among them. So are other RQ applications'
    whose names begin as ours do, such as `bulk:mail`.
    """
    keys = cast("set[bytes]", redis.smembers(Queue.redis_queues_keys))
    names = sorted(key.decode().removeprefix(Queue.redis_queue_namespace_prefix) for key in keys)
    ours = tuple(rotation_name(priority, "") for priority in Priority)
    return [make_queue(name, redis) for name in names if name.startswith(ours)]


def enqueue(shards: Iterable[Shard], pipe: Any, origin: Origin = _NO_ORIGIN) -> None:
    """Buffer the commands that post shards on a pipeline, sync or asyncio.

    The shards' owners must then be let wait for their turn: by `join_rotations`, or by the script
    that runs the commands. The caller decides whether they are one transaction.
    `Queue.enqueue_job` would call `pipe.multi()` in between, and its `unique` ignores the pipeline.

    Workers log the `origin`. It is a field of RQ's job and not of the shard, because a worker of an
    earlier version leaves a shard with an unknown field to others.
    """
    for shard in shards:
        data = Queue.prepare_data(
            _FUNC,
            kwargs=shard.to_json(),
            job_id=shard.id,
            timeout=-1,
            result_ttl=0,
            failure_ttl=FAILED_TTL_S,
            # By default RQ copies the arguments into the description.
            description=shard.id,
            # This is our budget of losses.
            retry=Retry(max=MAX_LOSSES, enqueue_at_front=True),
        )
        make_queue(shard.queue, _NO_CONNECTION).enqueue_many([data], pipeline=pipe)
        key = Job.key_for(shard.id)
        about: dict[str, str | int] = {"owner": shard.owner, **origin.fields}
        # take_shards.lua reads these, and the owner.
        about |= {"images": len(shard.indices), "steps": shard.recipe.passes}
        pipe.hset(key, mapping=about)
        # A shard that nobody ever runs expires as its job's record does.
        pipe.expire(key, UNFINISHED_TTL_S)


def queues_of(shards: Iterable[Shard]) -> list[str]:
    """Return the names of the queues that the shards wait in, each once."""
    return list(dict.fromkeys(shard.queue for shard in shards))


def join_rotations(shards: Iterable[Shard], client: Client) -> Any:
    """Let the owners of shards that were posted wait for their turn, if they do not yet."""
    return _JOIN.eval(client, queues=queues_of(shards))


def withdraw(shard_id: str, client: Client) -> Any:
    """Take a shard out of its queue if it waits, and tell its worker to drop it if it runs.

    Returns:
        b"removed", b"signalled", or b"absent" for a shard that is gone. A client of asyncio gives
        an awaitable of it, and a pipeline gives it when it is executed.
    """
    return _WITHDRAW.eval(client, id=shard_id)


def reap(redis: Redis, lease_s: float = LEASE_S) -> list[tuple[str, str]]:
    """Put every shard whose lease has lapsed back at the front of its queue, or fail it.

    Any process may call it, and any number at once. RQ's own cleanup is not used: it may push a
    shard twice, and its lock outlives its holder.

    Args:
        redis: the job store.
        lease_s: seconds after a heartbeat when a lease lapses. They pass only while heartbeats and
            reapers are heard: an outage costs no lease.

    Returns:
        Pairs of the shard's id and "requeued" or "failed"; "dropped" for what was no lease.
    """
    flat: list[bytes] = _REAP.call(
        redis,
        lease_s=lease_s,
        failed_ttl_s=FAILED_TTL_S,
        executions_template=WORKER_EXECUTIONS_KEY_TEMPLATE,
        most_losses=MAX_LOSSES,
    )
    words = [word.decode() for word in flat]
    return list(zip(words[::2], words[1::2], strict=True))


def sweep(redis: Redis, lease_s: float = LEASE_S) -> list[str]:
    """Take up what RQ's own workers, and versions before decision 32, left in RQ's keys.

    It also tidies queues that are long and half empty, and sets right what RQ's tools changed.

    Returns:
        The ids of the shards that went back to the front of their queue. Leases that were found are
        for `reap`.
    """
    ids: list[bytes] = []
    is_more = 1
    while is_more:
        is_more, *more = _SWEEP.call(
            redis, lease_s=lease_s, most_moved=_MOVED_AT_ONCE, classes=list(Priority)
        )
        ids += more
    names = (queue.name.removeprefix(QUEUE_NAMES) for queue in shard_queues(redis))
    models = {name.split(":")[1] for name in names}
    for name in (rotation_name(priority, model) for priority in Priority for model in models):
        # Names of killed workers go once their hash has expired.
        worker_registration.clean_worker_registry(make_queue(name, redis))
    return [shard_id.decode() for shard_id in ids]


def failed_shards(redis: Redis) -> list[str]:
    """Return the ids of the shards that lost every worker and have not been discarded."""
    ids = cast("set[bytes]", redis.smembers(FAILED_SHARDS))
    return sorted(shard_id.decode() for shard_id in ids)


def reason_of(redis: Redis, shard_id: str) -> str:
    """Return why the shard's last worker gave it up, empty if it did not say."""
    reason = cast("bytes | None", redis.hget(SHARD_PREFIX + shard_id, "reason"))
    return (reason or b"").decode()


def discard_failed(redis: Redis, shard_id: str) -> None:
    """Forget an id among the failed shards that is none of a shard."""
    redis.srem(FAILED_SHARDS, shard_id)
