"""A worker's leases on shards: many RQ jobs that one process holds at once.

No other file knows RQ's worker, whose `work()` runs one job at a time, in a fork. This class uses
RQ's registration and keys, so that RQ's own tools see every execution. It moves shards by the
scripts of worker/jobs/lua. A lease is an entry of `keys.LEASES`, in the server's time, so that
clocks need not agree. In RQ's set of started jobs an execution never lapses.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple
from uuid import uuid4

from redis import Redis
from rq import Queue
from rq.exceptions import DeserializationError
from rq.executions import Execution
from rq.job import Job
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer
from rq.utils import now, utcformat
from rq.worker import BaseWorker

from worker.jobs.domain import Shard
from worker.jobs.keys import LEASES
from worker.jobs.scripts import load
from worker.jobs.shard_queue import LEASE_S, MAX_LOSSES, make_queue

log = logging.getLogger(__name__)
# Shards of a queue that are compared for the next one: half a microsecond of Redis each.
_LOOKED_AT = 1000
_TAKE = load("take_shard")
_END = load("end_lease")
_EXTEND = load("extend_leases")
_ABANDON = load("abandon_shards")


class OwnerLimit(NamedTuple):
    """A limit on the shards that one owner gets.

    Attributes:
        most: interactive images of one owner above which only small shards of it are taken.
        small: images of a small shard, at most.
    """

    most: int = 1 << 30
    small: int = 0


@dataclass(frozen=True, slots=True)
class Lease:
    """A worker's hold on a shard, as RQ sees it.

    Attributes:
        shard: what is held.
        job: RQ's job that carries the shard.
        queue: the queue that the job came from.
        execution: RQ's record of this attempt.
        reached: image-steps that were done when the shard was lost before.
    """

    shard: Shard
    job: Job
    queue: Queue
    execution: Execution
    reached: int = 0

    @property
    def attempt(self) -> int:
        """Number of this attempt, 1 for a shard that no worker has lost yet."""
        return 1 + (self.job.number_of_retries or 0)

    @property
    def suspect(self) -> bool:
        """Tell whether a worker was lost with the shard without getting further.

        The shard itself may then be at fault.
        """
        return (self.job.retries_left or 0) < MAX_LOSSES

    @property
    def fence(self) -> tuple[str, str]:
        """Key of a sorted set, and the member that is in it as long as the lease is ours."""
        return LEASES, self.execution.composite_key


class BadShard(Exception):
    """The queue held something that is no shard of this version.

    Attributes:
        shard_id: its id, which names the job.
        discard: removes it from Redis. Call this when the job has been failed.
    """

    def __init__(self, shard_id: str, discard: Callable[[], object]) -> None:
        super().__init__(shard_id)
        self.shard_id = shard_id
        self.discard = discard


class _RqWorker(BaseWorker):
    """A worker in RQ's registry. It asks the server nothing before somebody waits for it."""

    def _set_connection(self, connection: Redis) -> Redis:
        # RQ's own would raise the socket timeout of the whole pool to 415 s.
        return connection

    def _set_ip_address(self, connection: Redis) -> None:
        # RQ's own would ask the server for it, before the server is waited for to come up.
        self.ip_address = "unknown"


class ShardLeases:
    """Takes shards, and keeps or ends its leases on them.

    `heartbeat` signs the worker on, and is then called every few seconds from a thread. `close` is
    the last call. All methods raise RedisError if Redis does not answer or refuses.

    Attributes:
        lease_s: seconds after its last heartbeat when a lease lapses.
        name: the worker's name in RQ's registry.
        queues: the queues to take shards from, the first ones first.
    """

    def __init__(
        self, connection: Redis, queue_names: Sequence[str], lease_s: float = LEASE_S
    ) -> None:
        self._rq_worker = _RqWorker(
            [make_queue(name, connection) for name in queue_names],
            connection=connection,
            serializer=JSONSerializer,
            worker_ttl=max(1, round(lease_s)),
        )
        self.connection = connection
        self.lease_s = lease_s
        self.name = self._rq_worker.name
        self.key = str(self._rq_worker.key)
        self.executions_key = self._rq_worker.executions_key
        self.queues = self._rq_worker.queues
        self.worker_ttl = self._rq_worker.worker_ttl
        self._leases: dict[str, Lease] = {}
        # Execution id of a take that has not been answered.
        self._asking: str | None = None
        self._lock = threading.Lock()

    @property
    def leases(self) -> list[Lease]:
        """The leases that, as far as we know, are ours, the first taken first."""
        with self._lock:
            return list(self._leases.values())

    def holds(self, lease: Lease) -> bool:
        """Tell whether, as far as we know, the lease is still ours."""
        return lease.execution.id in self._leases

    def take(
        self,
        queue_names: Collection[str],
        held: Mapping[str, int] = MappingProxyType({}),
        limits: Mapping[str, OwnerLimit] = MappingProxyType({}),
    ) -> Lease | None:
        """Take and lease a shard of the first queue that has one.

        One script does it, so that a kill at any moment loses no shard. After an error, the next
        call finds the shard that this one may have got.

        Args:
            queue_names: the queues to take a shard from.
            held: interactive images that the worker holds, by owner. Of the interactive shards, one
                whose owner has fewest goes first.
            limits: the limit for one owner's shards, by queue.

        Returns:
            The lease; None if there is no such shard.

        Raises:
            BadShard: what was taken is no shard of this version.
        """
        wanted = [queue for queue in self.queues if queue.name in queue_names]
        if not (wanted or self._asking):
            return None
        execution_id = self._asking = self._asking or uuid4().hex
        queues = [*wanted, *(queue for queue in self.queues if queue not in wanted)]
        got = _TAKE.call(
            self.connection,
            executions=self.executions_key,
            queues=[(queue.key, StartedJobRegistry(queue=queue).key) for queue in queues],
            execution=execution_id,
            worker=self.name,
            lease_s=self.lease_s,
            iso_now=utcformat(now()),
            wanted=len(wanted),
            most_read=_LOOKED_AT,
            limits=[limits.get(queue.name, OwnerLimit()) for queue in wanted],
            held=held.items(),
        )
        self._asking = None
        if not got:
            return None
        queue, job_id, flat = queues[got[0]], got[1].decode(), got[2]
        return self._lease(
            queue,
            Execution(execution_id, job_id, self.connection, self.name),
            dict(zip(flat[::2], flat[1::2], strict=True)),
        )

    def finish(self, lease: Lease) -> bool:
        """Delete every key of the shard.

        Returns:
            False if the shard had been taken from us; then nothing was done.
        """
        return self._end(lease, "delete")

    def give_back(self, lease: Lease) -> bool:
        """Put the shard at the front of its queue for another worker.

        A withdrawn shard is deleted instead.

        Returns:
            False if the shard had been taken from us; then nothing was done.
        """
        return self._end(lease, "front")

    def abandon(self, leases: Iterable[Lease] | None, reason: str) -> None:
        """Count this worker as lost, without waiting for the leases to lapse.

        Args:
            leases: the shards that count the loss; all that the worker holds if None or empty.
            reason: the cause of the loss. Clients see it if a shard loses its last worker.
        """
        with self._lock:
            lost = [
                self._leases.pop(lease.execution.id, lease)
                for lease in (leases or list(self._leases.values()))
            ]
        _ABANDON.call(
            self.connection,
            shards=[lease.job.key for lease in lost],
            reason=reason,
            members=[lease.execution.composite_key for lease in lost],
        )

    def heartbeat(self) -> list[Lease]:
        """Prolong the worker and all its leases, in one command.

        Returns:
            The leases that are ours no longer: drop their chains.
        """
        leases = self.leases
        alive, *states = _EXTEND.call(
            self.connection,
            worker=self.key,
            executions=self.executions_key,
            shards=[
                (lease.job.key, lease.execution.key, lease.job.execution_registry.key)
                for lease in leases
            ],
            worker_ttl_s=self.worker_ttl,
            lease_s=self.lease_s,
            iso_now=utcformat(now()),
            state="busy" if leases else "idle",
            members=[lease.execution.composite_key for lease in leases],
        )
        # Not alive the first time, or if we were stopped for so long that our key expired.
        if not alive:
            self._rq_worker.register_birth()  # type: ignore[no-untyped-call]
            # RQ's own time to live would be a minute longer.
            self.connection.expire(self.key, self.worker_ttl)
        gone = [lease for lease, state in zip(leases, states, strict=True) if state == b"lost"]
        with self._lock:
            for lease in gone:
                self._leases.pop(lease.execution.id, None)
        cancelled = [le for le, state in zip(leases, states, strict=True) if state == b"cancelled"]
        return gone + cancelled

    def close(self) -> None:
        """Give everything back, also what an unanswered take got, and sign off."""
        with suppress(BadShard):
            self.take([])
        # The last taken is pushed first, so that the queue keeps their order.
        for lease in reversed(self.leases):
            self.give_back(lease)
        self._rq_worker.register_death()  # type: ignore[no-untyped-call]
        self.connection.delete(self.key)

    def _lease(self, queue: Queue, execution: Execution, fields: dict[bytes, bytes]) -> Lease:
        job = Job(execution.job_id, connection=self.connection, serializer=JSONSerializer)
        try:
            job.restore(fields)
            lease = Lease(
                Shard.from_json(job.kwargs), job, queue, execution, int(fields.get(b"reached", 0))
            )
        except (DeserializationError, KeyError, TypeError, ValueError):
            log.exception("%s in %s is no shard of this version", execution.job_id, queue.name)
            raise BadShard(
                execution.job_id, lambda: self._fence(job, queue, execution, "delete")
            ) from None
        with self._lock:
            self._leases[execution.id] = lease
        return lease

    def _end(self, lease: Lease, mode: Literal["delete", "front"]) -> bool:
        with self._lock:
            self._leases.pop(lease.execution.id, None)
        return self._fence(lease.job, lease.queue, lease.execution, mode)

    def _fence(self, job: Job, queue: Queue, execution: Execution, mode: str) -> bool:
        ended = _END.call(
            self.connection,
            started=StartedJobRegistry(queue=queue).key,
            waiting=queue.key,
            shard=job.key,
            index=job.execution_registry.key,
            execution=execution.key,
            executions=self.executions_key,
            member=execution.composite_key,
            id=job.id,
            mode=mode,
        )
        return bool(ended)
