"""Shards from the side of a worker: many RQ jobs held at once by one process. The only file that knows RQ's worker.

RQ's `work()` runs one job at a time, in a fork. This class uses RQ's registration and keys, so that RQ's own tools see every
execution, and moves shards by scripts of worker/jobs/lua. A lease is the score of an execution in RQ's set of started jobs,
in the server's time, so that clocks need not agree.
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
from rq.executions import Execution, ExecutionRegistry
from rq.job import Job
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer
from rq.utils import now, utcformat
from rq.worker import BaseWorker

from worker.jobs.domain import Shard
from worker.jobs.keys import job_key
from worker.jobs.scripts import load
from worker.jobs.shard_queue import LEASE_S, MAX_LOSSES, make_queue

log = logging.getLogger(__name__)
_LOOKED_AT = 1000  # shards of a queue: half a microsecond of Redis each
_TAKE = load("take_shard")
_END = load("end_lease")
_EXTEND = load("extend_leases")
_ABANDON = load("abandon_shards")


class OwnerLimit(NamedTuple):
    """For an owner of whom more than `most` interactive images are here, a shard of more than `small` is not taken."""

    most: int = 1 << 30
    small: int = 0


@dataclass(frozen=True, slots=True)
class Lease:
    """A shard that this worker holds, as RQ sees it. `reached`: image-steps that were done when it was lost before."""

    shard: Shard
    job: Job
    queue: Queue
    execution: Execution
    reached: int = 0

    @property
    def attempt(self) -> int:
        """1 for a shard that no worker has lost yet."""
        return 1 + (self.job.number_of_retries or 0)

    @property
    def suspect(self) -> bool:
        """Whether a worker was lost with it without getting further: the shard itself may be at fault."""
        return (self.job.retries_left or 0) < MAX_LOSSES

    @property
    def fence(self) -> tuple[str, str]:
        """A sorted set, and what is in it for as long as the lease is ours."""
        return self.started_key, self.execution.composite_key

    @property
    def started_key(self) -> str:
        return StartedJobRegistry(queue=self.queue).key


class BadShard(Exception):
    """The queue held what is no shard of this version. `shard_id` says of which job; `discard` it when that has been failed."""

    def __init__(self, shard_id: str, discard: Callable[[], object]) -> None:
        super().__init__(shard_id)
        self.shard_id, self.discard = shard_id, discard


class ShardLeases(BaseWorker):
    """`beat` signs on, and again every few seconds, from a thread; `take` and `finish` in between; `close` at the end."""

    def __init__(
        self, connection: Redis, queue_names: Sequence[str], lease_s: float = LEASE_S
    ) -> None:
        super().__init__(
            [make_queue(name, connection) for name in queue_names],
            connection=connection,
            serializer=JSONSerializer,
            worker_ttl=max(1, round(lease_s)),
        )
        self.lease_s = lease_s
        self._leases: dict[str, Lease] = {}
        self._asking: str | None = None  # execution id of a take that has not been answered
        self._lock = threading.Lock()

    def _set_connection(self, connection: Redis) -> Redis:
        return connection  # RQ's own would raise the socket timeout of the whole pool to 415 s

    def _set_ip_address(self, connection: Redis) -> None:
        self.ip_address = "unknown"  # RQ would ask the server for it, here, before anybody waits for the server to come up

    def holds(self, lease: Lease) -> bool:
        """Whether, as far as we know, the lease is still ours."""
        return lease.execution.id in self._leases

    def take(
        self,
        queue_names: Collection[str],
        held: Mapping[str, int] = MappingProxyType({}),
        limits: Mapping[str, OwnerLimit] = MappingProxyType({}),
    ) -> Lease | None:
        """Pop and lease a shard of the first queue that has one, in one script: a kill at any moment loses no shard.

        `held`: interactive images that are here, by owner; of interactive shards one whose owner has least goes first.
        `limits` by queue. Asked again after an error, it finds the shard that it may have got. Raises BadShard.
        """
        wanted = [queue for queue in self.queues if queue.name in queue_names]
        if not (wanted or self._asking):
            return None
        execution_id = self._asking = self._asking or uuid4().hex
        queues = [*wanted, *(queue for queue in self.queues if queue not in wanted)]
        nobody = Execution("", "", self.connection)
        got = _TAKE.call(
            self.connection,
            executions=self.executions_key,
            queues=[(queue.key, StartedJobRegistry(queue=queue).key) for queue in queues],
            execution=execution_id,
            worker=self.name,
            lease_s=self.lease_s,
            iso_now=utcformat(now()),
            shard_prefix=Job.key_for(""),
            execution_prefix=nobody.key[:-1],
            index_prefix=ExecutionRegistry("", self.connection).key,
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
        """Delete every key of the shard. False: it had been taken from us, and nothing was done."""
        return self._end(lease, "delete")

    def give_back(self, lease: Lease) -> bool:
        """Put the shard at the front of its queue for another worker; a withdrawn one is deleted instead."""
        return self._end(lease, "front")

    def abandon(self, leases: Iterable[Lease] | None, reason: str) -> None:
        """Count this worker as lost to these shards, or to all that it holds, without waiting for their leases to lapse."""
        with self._lock:
            lost = [
                self._leases.pop(lease.execution.id, lease)
                for lease in (leases or list(self._leases.values()))
            ]
        _ABANDON.call(
            self.connection,
            shards=[(lease.started_key, lease.job.key) for lease in lost],
            reason=reason,
            members=[lease.execution.composite_key for lease in lost],
        )

    def beat(self) -> list[Lease]:
        """Prolong the worker and all its leases, in one command. Returns those that are ours no longer: drop their chains."""
        with self._lock:
            leases = list(self._leases.values())
        alive, *states = _EXTEND.call(
            self.connection,
            worker=self.key,
            executions=self.executions_key,
            shards=[
                (le.started_key, le.job.key, le.execution.key, le.job.execution_registry.key)
                for le in leases
            ],
            worker_ttl_s=self.worker_ttl,
            lease_s=self.lease_s,
            iso_now=utcformat(now()),
            state="busy" if leases else "idle",
            members=[lease.execution.composite_key for lease in leases],
        )
        if not alive:  # the first time, or we were stopped for so long that our key expired
            self.register_birth()  # type: ignore[no-untyped-call]  # RQ's
            self.connection.expire(self.key, self.worker_ttl)  # RQ's own would be a minute longer
        gone = [lease for lease, state in zip(leases, states, strict=True) if state == b"lost"]
        with self._lock:
            for lease in gone:
                self._leases.pop(lease.execution.id, None)
        return gone + [
            lease for lease, state in zip(leases, states, strict=True) if state == b"cancelled"
        ]

    def close(self) -> None:
        """Give everything back, also what a take without an answer got, and sign off."""
        with suppress(BadShard):
            self.take([])
        for lease in reversed(
            list(self._leases.values())
        ):  # the last taken is pushed first, so that their order is kept
            self.give_back(lease)
        self.register_death()  # type: ignore[no-untyped-call]  # RQ's
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
            started_key = StartedJobRegistry(queue=queue).key
            raise BadShard(
                execution.job_id, lambda: self._fence(started_key, job, queue, execution, "delete")
            ) from None
        with self._lock:
            self._leases[execution.id] = lease
        return lease

    def _end(self, lease: Lease, mode: Literal["delete", "front"]) -> bool:
        with self._lock:
            self._leases.pop(lease.execution.id, None)
        return self._fence(lease.started_key, lease.job, lease.queue, lease.execution, mode)

    def _fence(
        self, started_key: str, job: Job, queue: Queue, execution: Execution, mode: str
    ) -> bool:
        ended = _END.call(
            self.connection,
            started=started_key,
            waiting=queue.key,
            shard=job.key,
            index=job.execution_registry.key,
            execution=execution.key,
            executions=self.executions_key,
            member=execution.composite_key,
            id=job.id,
            mode=mode,
            shard_prefix=Job.key_for(""),
            record_prefix=job_key(""),
        )
        return bool(ended)
