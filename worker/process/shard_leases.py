"""A worker's leases on shards: many RQ jobs that one process holds at once.

No other file knows RQ's worker, whose `work()` runs one job at a time, in a fork. This class uses
RQ's registration and keys, so that RQ's own tools see every execution. It moves shards by the
scripts of worker/jobs/lua. A lease is an entry of `keys.LEASES`. Its time passes while the server
hears heartbeats (lua/shared/lease_clock.lua), so clocks need not agree. In RQ's
set of started jobs an execution never lapses.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Literal, cast
from uuid import uuid4

from redis import Redis
from redis.client import Pipeline
from rq.serializers import JSONSerializer
from rq.utils import now, utcformat
from rq.worker import BaseWorker

from worker.jobs.domain import SHARD_IMAGES, Origin, Priority, Shard
from worker.jobs.keys import (
    EXECUTION_PREFIX,
    EXECUTIONS_PREFIX,
    LEASES,
    QUEUES,
    SHARD_PREFIX,
    STARTED_PREFIX,
    chains_key,
    job_key,
    rotation_name,
    sha256_key,
    take_key,
)
from worker.jobs.scripts import Argument, load
from worker.jobs.shard_queue import LEASE_S, MAX_LOSSES, make_queue
from worker.logs import event

log = logging.getLogger(__name__)
_TAKE = load("take_shards")
_END = load("end_lease")
_FINISH = load("finish_shard")
_EXTEND = load("extend_leases")
_ABANDON = load("abandon_shards")
# When one of several suspects ends its worker, each of them is then tried alone, which takes time.
SUSPECTS_AT_ONCE = 16
Ending = Literal["finished", "lost", "unsettled"]


@dataclass(frozen=True, slots=True)
class Room:
    """How much a worker would take of one class of a model.

    Another shard is taken while a whole one fits into the pool, and something is lacking or the
    shard is of an owner of whom the worker holds nothing.

    Attributes:
        images: places that are free in the pool.
        batch: images that are lacking to fill the largest batch.
        image_steps: work that is lacking.
        shards: how many of them are lacking.
        newcomers: how many owners' shards are taken when nothing is lacking.
        owners: those of whom the worker holds shards.
    """

    images: int
    batch: int
    image_steps: int = 0
    shards: int = 0
    newcomers: int = 0
    owners: frozenset[str] = frozenset()

    def arguments(self) -> tuple[int, int, int, int, int, str]:
        """Return what take_shards.lua takes of it."""
        # No owner's name has a colon, because it stands in the name of a queue.
        owners = "".join(f"{owner}:" for owner in sorted(self.owners))
        lacking = (self.batch, self.image_steps, self.shards)
        return self.images, *lacking, self.newcomers, f":{owners}"


@dataclass(frozen=True, slots=True)
class Execution:
    """RQ's record that a worker holds a shard.

    RQ's own classes are not used here: to make them takes longer than all else that is done to take
    a shard.

    Attributes:
        id: its name among the shard's executions.
        shard_id: the shard.
        queue: name of the queue that the shard came from.
        created_at: when the worker took the shard, in seconds since the epoch.
    """

    id: str
    shard_id: str
    queue: str
    created_at: float = 0.0

    @property
    def composite_key(self) -> str:
        """The member of `keys.LEASES`, and of RQ's set of started jobs, that it is."""
        return f"{self.shard_id}:{self.id}"

    @property
    def shard_key(self) -> str:
        """Key of the shard's hash, which is RQ's job."""
        return SHARD_PREFIX + self.shard_id

    @property
    def keys(self) -> dict[str, str]:
        """The keys that scripts take which end a lease, by name."""
        return {
            "started": STARTED_PREFIX + self.queue,
            "shard": self.shard_key,
            "index": EXECUTIONS_PREFIX + self.shard_id,
            "execution": EXECUTION_PREFIX + self.composite_key,
        }


@dataclass(frozen=True, slots=True)
class Lease:
    """A worker's hold on a shard, as RQ sees it.

    Attributes:
        shard: what is held.
        execution: RQ's record of this attempt.
        retries_left: losses after which the shard fails.
        retries: attempts before this one.
        reached: image-steps that were done when the shard was lost before.
        origin: the request that posted the shard's job.
        posted_at: when the shard was posted, in seconds since the epoch.
    """

    shard: Shard
    execution: Execution
    retries_left: int = MAX_LOSSES
    retries: int = 0
    reached: int = 0
    origin: Origin = Origin()  # noqa: RUF009 (it is immutable)
    posted_at: float = 0.0

    @property
    def log_fields(self) -> dict[str, str]:
        """The fields of log lines about the shard."""
        shard = self.shard
        about = {"job": shard.job, "shard": shard.id, "owner": shard.owner}
        return about | self.origin.log_fields

    @property
    def attempt(self) -> int:
        """Number of this attempt, 1 for a shard that no worker has lost yet."""
        return 1 + self.retries

    @property
    def suspect(self) -> bool:
        """Tell whether a worker was lost with the shard without getting further.

        The shard itself may then be at fault.
        """
        return self.retries_left < MAX_LOSSES

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

    def take_up_to(
        self, most: int, rooms: Mapping[str, int | Room], *, asks: bool = False
    ) -> list[Lease | BadShard]:
        """Take and lease the shards whose turn it is, in one round trip.

        One script does it, so that a kill at any moment loses no shard. After an error, the next
        call finds the shards that this one may have got. After a shard with one loss come only
        such, SUSPECTS_AT_ONCE in all, and after one with more none. The shard with which they have
        the images of a whole one is the last: large shards are left to others.

        Args:
            most: shards to take at most.
            rooms: rotations to take shards from, and how much is taken of each. A number is room
                for so many images, whatever their work.
            asks: whether to ask other workers, if nothing waits, to hand back what they do not run.

        Returns:
            The leases, and a BadShard for each that is no shard of this version.
        """
        wanted = [
            (name, *(room if isinstance(room, Room) else Room(room, room)).arguments())
            for name in self._turns
            if (room := rooms.get(name)) is not None
        ]
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
                most_suspects=SUSPECTS_AT_ONCE,
                since_bulk=self._since_bulk,
                asks=int(asks),
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

    def serve(self, rotations: Sequence[str]) -> None:
        """Take shards from more rotations. RQ's tools show the first ones only.

        The take that is under way may not see them.
        """
        self._turns.extend(name for name in rotations if name not in self._turns)

    def finish(self, lease: Lease) -> bool:
        """Delete every key of the shard.

        Returns:
            False if the shard had been taken from us; then nothing was done.
        """
        return self._end(lease, "delete")

    def finish_all(self, leases: Sequence[Lease]) -> list[Ending]:
        """Delete every key of shards of which nothing is left to do, in one round trip.

        Returns:
            Of each shard `finished`, `lost` if it had been taken from us, or `unsettled` if one of
            its images has no hash. In the last case the lease is still ours.
        """
        with self.connection.pipeline(transaction=False) as pipe:
            _FINISH.call_each(pipe, map(self._finish_arguments, leases))
            endings = [cast("Ending", ending.decode()) for ending in pipe.execute()]
        with self._lock:
            for lease, ending in zip(leases, endings, strict=True):
                if ending != "unsettled":
                    self._leases.pop(lease.execution.composite_key, None)
        return endings

    def _finish_arguments(self, lease: Lease) -> dict[str, Argument]:
        shard, execution = lease.shard, lease.execution
        return {
            **execution.keys,
            "executions": self.executions_key,
            "record": job_key(shard.job),
            "hashes": sha256_key(shard.job),
            "chains": chains_key(shard.job),
            "member": execution.composite_key,
            "id": shard.id,
            "number": shard.number,
            "first": shard.first,
            "count": shard.count,
        }

    def give_back(self, lease: Lease, end: Literal["front", "back"] = "front") -> bool:
        """Put the shard into its queue for another worker, at the front unless `end` is "back".

        A withdrawn shard is deleted instead.

        Returns:
            False if the shard had been taken from us; then nothing was done.
        """
        return self._end(lease, end)

    def hand_back(self, leases: Sequence[Lease]) -> None:
        """Put shards at the front of their queues, in one round trip, the first one first."""
        with self.connection.pipeline(transaction=False) as pipe:
            for lease in reversed(leases):
                self._fence(lease.execution, "front", pipe)
            pipe.execute()
        # Only now: until then heartbeats extend them.
        with self._lock:
            for lease in leases:
                self._leases.pop(lease.execution.composite_key, None)

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
            shards=[lease.execution.shard_key for lease in lost],
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
                (keys["shard"], keys["execution"], keys["index"])
                for keys in (lease.execution.keys for lease in leases)
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
        execution = Execution(execution_id, shard_id, queue_name, time.time())
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        try:
            lease = Lease(
                Shard.from_json(_arguments_of(fields.get(b"data", b""))),
                execution,
                int(fields.get(b"retries_left") or 0),
                int(fields.get(b"number_of_retries") or 0),
                int(fields.get(b"reached", 0)),
                Origin.from_hash(fields),
                datetime.fromisoformat(fields.get(b"created_at", b"").decode()).timestamp(),
            )
        except (KeyError, TypeError, ValueError) as error:
            end = partial(self._fence, execution)
            # `Shard.from_json` raises these two.
            kind = ForeignShard if isinstance(error, KeyError | TypeError) else BadShard
            if kind is BadShard:
                log.exception(
                    "%s in %s is no shard",
                    shard_id,
                    queue_name,
                    extra=event("shard.unreadable", shard=shard_id),
                )
            return kind(shard_id, rotation, partial(end, "delete"), partial(end, "back"))
        with self._lock:
            self._leases[execution.composite_key] = lease
        return lease

    def _note_turn(self, rotation: str) -> None:
        """Remember that a shard was taken from a rotation: the other ones have the next turns."""
        if rotation in self._turns:
            self._turns.remove(rotation)
            self._turns.append(rotation)
        is_bulk = rotation.startswith(rotation_name(Priority.BULK, ""))
        self._since_bulk = 0 if is_bulk else self._since_bulk + 1

    def _end(self, lease: Lease, mode: Literal["delete", "front", "back"]) -> bool:
        with self._lock:
            self._leases.pop(lease.execution.composite_key, None)
        return self._fence(lease.execution, mode)

    def _fence(
        self, execution: Execution, mode: str, client: Redis | Pipeline | None = None
    ) -> bool:
        ended = _END.call(
            self.connection if client is None else client,
            **execution.keys,
            executions=self.executions_key,
            member=execution.composite_key,
            id=execution.shard_id,
            mode=mode,
        )
        return bool(ended)


def _arguments_of(data: bytes) -> Any:
    """Return the arguments of the call that a job of RQ's holds as compressed JSON.

    Raises:
        ValueError: it holds something else.
    """
    try:
        _, _, _, arguments = json.loads(zlib.decompress(data))
    except (RecursionError, TypeError, ValueError, zlib.error) as error:
        raise ValueError(f"it is no call in JSON: {error}") from error
    return arguments
