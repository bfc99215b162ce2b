"""Shards in RQ's queues, from the side of whoever posts, withdraws or rescues them. Knows RQ, not its worker.

RQ owns the job format, the key names and the worker registration; every change of a shard's state is one Lua script of
ours, because RQ's own are neither atomic nor fenced (docs/decisions/0003). RQ is pinned: its key layout is private.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

from redis import Redis
from rq import Queue, Retry, worker_registration
from rq.executions import WORKER_EXECUTIONS_KEY_TEMPLATE, Execution, ExecutionRegistry
from rq.job import Job
from rq.registry import FailedJobRegistry, StartedJobRegistry
from rq.serializers import JSONSerializer

from worker.jobs.domain import Priority, Shard
from worker.jobs.keys import job_key
from worker.jobs.policy import UNFINISHED_TTL_S
from worker.jobs.scripts import Client, load

LEASE_S = 15.0  # an execution not heard of for this long is anybody's
MAX_LOSSES = 3  # a shard that loses this many workers, none of which got further than those before, is failed
FAILED_TTL_S = 3600  # lost too often: kept in RQ's failed registry until it is settled
_FUNC = "worker.sample"  # a label: never imported, workers read the arguments only
_NO_CONNECTION = Redis()  # RQ's queues want one to be made; this one never connects
_WITHDRAW = load("withdraw_shard")
_REAP = load("reap_shards")


def make_queue(name: str, connection: Any) -> Queue:
    """JSON always: a queue built without a serializer unpickles what it finds."""
    queue = Queue(name, connection=cast("Redis", connection), serializer=JSONSerializer)
    queue.redis_server_version = (
        6,
        2,
        0,
    )  # else the first enqueue asks the server with a blocking INFO
    return queue


def our_queues(redis: Redis) -> list[Queue]:
    """All that a shard was ever posted to, also those of models that no catalog has any more."""
    keys = cast("set[bytes]", redis.smembers(Queue.redis_queues_keys))
    names = sorted(key.decode().removeprefix(Queue.redis_queue_namespace_prefix) for key in keys)
    return [make_queue(name, redis) for name in names if name.partition(":")[0] in list(Priority)]


def enqueue(shards: Iterable[Shard], pipe: Any) -> None:
    """Buffer the commands that post `shards` on `pipe`, sync or asyncio; the caller's MULTI decides.

    `Queue.enqueue_job` would call `pipe.multi()` in the midst of it, and its `unique` ignores the pipeline.
    """
    for shard in shards:
        data = Queue.prepare_data(
            _FUNC,
            kwargs=shard.to_json(),
            job_id=shard.id,
            timeout=-1,
            result_ttl=0,
            failure_ttl=FAILED_TTL_S,
            description=shard.id,  # by default RQ copies the arguments into it
            retry=Retry(max=MAX_LOSSES, enqueue_at_front=True),  # our budget of losses
        )
        make_queue(shard.queue, _NO_CONNECTION).enqueue_many([data], pipeline=pipe)
        pipe.hset(
            Job.key_for(shard.id), mapping={"owner": shard.owner, "images": len(shard.indices)}
        )  # for take_shard.lua
        pipe.expire(
            Job.key_for(shard.id), UNFINISHED_TTL_S
        )  # as its job's record, should nobody ever run it


def withdraw(shard: Shard, client: Client) -> Any:
    """Take the shard out of its queue if it waits, and tell its worker to drop it if it runs.

    Returns:
        b"removed", b"signalled", or b"absent" for a shard that is gone. An awaitable of it for a
        client of asyncio; nothing of use for a pipeline, which runs it later.
    """
    return _withdraw(make_queue(shard.queue, _NO_CONNECTION), shard.id, client)


def given_up(queue: Queue) -> list[tuple[str, str]]:
    """Shards that lost every worker, until they are discarded, and what the last worker said of it, if it could."""
    ids = cast("list[bytes]", queue.connection.zrange(FailedJobRegistry(queue=queue).key, 0, -1))
    return [(shard_id.decode(), _reason(queue, shard_id.decode())) for shard_id in ids]


def _reason(queue: Queue, shard_id: str) -> str:
    return (
        cast("bytes | None", queue.connection.hget(Job.key_for(shard_id), "reason")) or b""
    ).decode()


def discard(queue: Queue, shard_id: str) -> None:
    """Remove a shard that was given up."""
    _withdraw(queue, shard_id, queue.connection)


def _withdraw(queue: Queue, shard_id: str, client: Client) -> Any:
    return _WITHDRAW.eval(
        client,
        waiting=queue.key,
        shard=Job.key_for(shard_id),
        failed=FailedJobRegistry(queue=queue).key,
        id=shard_id,
    )


def reap(queues: Sequence[Queue], lease_s: float = LEASE_S) -> list[tuple[str, str]]:
    """Put every shard whose lease lapsed back at the front: [(shard id, 'requeued' | 'failed')].

    Any process may call it, any number at once. RQ's own cleanup may push a shard twice, and its lock outlives its holder.
    """
    done: list[tuple[str, str]] = []
    for queue in queues:
        nobody = Execution("", "", queue.connection)
        out = cast(
            "list[bytes]",
            _REAP.call(
                queue.connection,
                started=StartedJobRegistry(queue=queue).key,
                waiting=queue.key,
                intermediate=queue.intermediate_queue_key,
                failed=FailedJobRegistry(queue=queue).key,
                lease_s=lease_s,
                failed_ttl_s=FAILED_TTL_S,
                shard_prefix=Job.key_for(""),
                execution_prefix=nobody.key[:-1],
                index_prefix=ExecutionRegistry("", queue.connection).key,
                seen_prefix=queue.intermediate_queue.get_first_seen_key(""),
                executions_template=WORKER_EXECUTIONS_KEY_TEMPLATE,
                most_losses=MAX_LOSSES,
                record_prefix=job_key(""),
            ),
        )
        done += [(out[i].decode(), out[i + 1].decode()) for i in range(0, len(out), 2)]
        worker_registration.clean_worker_registry(
            queue
        )  # names of killed workers, once their hash has expired
    return done
