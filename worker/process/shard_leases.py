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
from dataclasses import dataclass
from functools import partial
from typing import Literal
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

from worker.jobs.domain import SHARD_IMAGES, Priority, Shard
from worker.jobs.keys import LEASES, QUEUES, take_key
from worker.jobs.scripts import load
from worker.jobs.shard_queue import LEASE_S, MAX_LOSSES, make_queue

log = logging.getLogger(__name__)
_TAKE = load("take_shards")
_END = load("end_lease")
_EXTEND = load("extend_leases")
_ABANDON = load("abandon_shards")


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
    """The queue held something that this worker cannot read.

    Attributes:
        shard_id: its id, which names the job.
        rotation: the rotation that it came from.
        discard: removes it from Redis. Call this when the job has been failed.
        put_back: puts it at the back of its queue.
    """

    def __init__(
        self,
        shard_id: str,
        rotation: str,
        discard: Callable[[], object],
        put_back: Callable[[], object],
    ) -> None:
        super().__init__(shard_id)
        self.shard_id = shard_id
        self.rotation = rotation
        self.discard = discard
        self.put_back = put_back


class ForeignShard(BadShard):
    """The shard is sound, but has the fields of another version of the service."""


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
    """

    def __init__(
        self, connection: Redis, rotations: Sequence[str], lease_s: float = LEASE_S
    ) -> None:
        """Make a worker's side of the queue.

        Args:
            connection: the job store.
            rotations: names of the rotations (`keys.rotation_name`) to take shards from. RQ's tools
                show them as the worker's queues.
            lease_s: seconds after its last heartbeat when a lease lapses.
        """
        self._rq_worker = _RqWorker(
            [make_queue(name, connection) for name in rotations],
            connection=connection,
            serializer=JSONSerializer,
            worker_ttl=max(1, round(lease_s)),
        )
        self.connection = connection
        self.lease_s = lease_s
        self.name = self._rq_worker.name
        self.key = str(self._rq_worker.key)
        self.executions_key = self._rq_worker.executions_key
        self.worker_ttl = self._rq_worker.worker_ttl
        self._leases: dict[str, Lease] = {}
        # The rotations, the one that a shard was taken from longest ago first.
        self._turns = list(rotations)
        # Interactive shards that were taken after the last bulk shard.
        self._since_bulk = 0
        # Number of the last take, and its execution id if it has not been answered.
        self._number = 0
        self._asking: str | None = None
        self._lock = threading.Lock()

    @property
    def leases(self) -> list[Lease]:
        """The leases that, as far as we know, are ours, the first taken first."""
        with self._lock:
            return list(self._leases.values())

    def holds(self, lease: Lease) -> bool:
        """Tell whether, as far as we know, the lease is still ours."""
        return lease.execution.composite_key in self._leases

    def take(self, rotations: Collection[str]) -> Lease | None:
        """Take and lease the shard whose turn it is; None if there is none.

        Args:
            rotations: names of the rotations to take a shard from.

        Raises:
            ForeignShard: what was taken is a shard of another version.
            BadShard: what was taken is no shard at all.
        """
        for taken in self.take_up_to(1, dict.fromkeys(rotations, SHARD_IMAGES)):
            if isinstance(taken, BadShard):
                raise taken
            return taken
        return None

    def take_up_to(self, most: int, rooms: Mapping[str, int]) -> list[Lease | BadShard]:
        """Take and lease the shards whose turn it is, in one round trip.

        One script does it, so that a kill at any moment loses no shard. After an error, the next
        call finds the shards that this one may have got. A suspect is the last one, and so is the
        shard with which they have the images of a whole one: large shards are left to others.

        Args:
            most: shards to take at most.
            rooms: rotations to take shards from, and images that there is room for. Another shard
                is taken while the room is that of a whole one.

        Returns:
            The leases, and a BadShard for each that is no shard of this version.
        """
        wanted = [(name, rooms[name]) for name in self._turns if name in rooms]
        while wanted or self._asking:
            if not self._asking:
                self._number += 1
                self._asking = uuid4().hex
            got = _TAKE.call(
                self.connection,
                executions=self.executions_key,
                taken=take_key(self.name),
                number=self._number,
                execution=self._asking,
                worker=self.name,
                lease_s=self.lease_s,
                iso_now=utcformat(now()),
                most=most,
                most_losses=MAX_LOSSES,
                since_bulk=self._since_bulk,
                wanted=wanted,
            )
            execution_id, self._asking = self._asking, None
            if got is None:
                break
            if got:
                return [
                    self._taken(execution_id, queue.decode(), shard_id.decode(), fields)
                    for queue, shard_id, fields in zip(got[::3], got[1::3], got[2::3], strict=True)
                ]
        return []

    def finish(self, lease: Lease) -> bool:
        """Delete every key of the shard.

        Returns:
            False if the shard had been taken from us; then nothing was done.
        """
        return self._end(lease, "delete")

    def give_back(self, lease: Lease, end: Literal["front", "back"] = "front") -> bool:
        """Put the shard into its queue for another worker, at the front unless `end` is "back".

        A withdrawn shard is deleted instead.

        Returns:
            False if the shard had been taken from us; then nothing was done.
        """
        return self._end(lease, end)

    def abandon(self, leases: Iterable[Lease] | None, reason: str) -> None:
        """Count this worker as lost, without waiting for the leases to lapse.

        Args:
            leases: the shards that count the loss; all that the worker holds if None or empty.
            reason: the cause of the loss. Clients see it if a shard loses its last worker.
        """
        with self._lock:
            lost = [
                self._leases.pop(lease.execution.composite_key, lease)
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
            # RQ's tools show the workers of queues that are listed.
            self.connection.sadd(QUEUES, *self._rq_worker.queue_keys())
        gone = [lease for lease, state in zip(leases, states, strict=True) if state == b"lost"]
        with self._lock:
            for lease in gone:
                self._leases.pop(lease.execution.composite_key, None)
        cancelled = [le for le, state in zip(leases, states, strict=True) if state == b"cancelled"]
        return gone + cancelled

    def close(self) -> None:
        """Give everything back, also what an unanswered take got, and sign off."""
        for taken in self.take_up_to(1, {}):
            if isinstance(taken, BadShard):
                taken.put_back()
        # The last taken is pushed first, so that the queue keeps their order.
        for lease in reversed(self.leases):
            self.give_back(lease)
        self._rq_worker.register_death()  # type: ignore[no-untyped-call]
        self.connection.delete(self.key, take_key(self.name))

    def _taken(
        self, execution_id: str, queue_name: str, shard_id: str, flat: Sequence[bytes]
    ) -> Lease | BadShard:
        rotation = queue_name.rpartition(":")[0]
        self._note_turn(rotation)
        queue = make_queue(queue_name, self.connection)
        execution = Execution(execution_id, shard_id, self.connection, self.name)
        job = Job(shard_id, connection=self.connection, serializer=JSONSerializer)
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        try:
            job.restore(fields)
            lease = Lease(
                Shard.from_json(job.kwargs), job, queue, execution, int(fields.get(b"reached", 0))
            )
        except (DeserializationError, KeyError, TypeError, ValueError) as error:
            end = partial(self._fence, job, queue, execution)
            # `Shard.from_json` raises these two; RQ has read the job by then.
            kind = ForeignShard if isinstance(error, KeyError | TypeError) else BadShard
            if kind is BadShard:
                log.exception("%s in %s is no shard", shard_id, queue_name)
            return kind(shard_id, rotation, partial(end, "delete"), partial(end, "back"))
        with self._lock:
            self._leases[execution.composite_key] = lease
        return lease

    def _note_turn(self, rotation: str) -> None:
        """Remember that a shard was taken from a rotation: the other ones have the next turns."""
        if rotation in self._turns:
            self._turns.remove(rotation)
            self._turns.append(rotation)
        is_bulk = rotation.startswith(Priority.BULK)
        self._since_bulk = 0 if is_bulk else self._since_bulk + 1

    def _end(self, lease: Lease, mode: Literal["delete", "front", "back"]) -> bool:
        with self._lock:
            self._leases.pop(lease.execution.composite_key, None)
        return self._fence(lease.job, lease.queue, lease.execution, mode)

    def _fence(self, job: Job, queue: Queue, execution: Execution, mode: str) -> bool:
        ended = _END.call(
            self.connection,
            started=StartedJobRegistry(queue=queue).key,
            shard=job.key,
            index=job.execution_registry.key,
            execution=execution.key,
            executions=self.executions_key,
            member=execution.composite_key,
            id=job.id,
            mode=mode,
        )
        return bool(ended)
