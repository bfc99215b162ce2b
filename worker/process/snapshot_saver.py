"""Snapshots of running chains, so that another worker can go on where this one was lost.

The loop copies the chains between two steps. A thread packs and sends the copies.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from models.networks.memory import is_out_of_memory
from worker.engine.chain import Snapshot
from worker.engine.snapshot_codec import pack
from worker.jobs.worker_registry import WorkerCounters
from worker.logs import event
from worker.process.active_shard import ActiveShard
from worker.process.job_writer import COMMAND_BYTES, JobWriter, Save
from worker.process.loaded_model import LoadedModel
from worker.process.messages import JobEnded, MessageQueue
from worker.process.shard_leases import ShardLeases
from worker.redaction import client_reason

log = logging.getLogger(__name__)
# What a kill costs, at most.
SAVE_EVERY_S = 1.0
# Chance has little time: a suspect that was killed from outside has advanced by then.
SUSPECT_EVERY_S = 0.2
POLL_EVERY_S = 0.1
# At most this part of the loop's time: a copy that took long delays the next one.
TIME_SHARE = 0.01
# Bytes that are copied together; at least one chain.
COPY_BYTES = 64 * 1024 * 1024
# Redis takes 5 ms for a megabyte, so large chains are saved less often.
REDIS_BYTES_PER_S = 10e6
# A model needs a results store if the chains of a whole shard are more: to send them to Redis would
# take longer than a lease lasts.
REDIS_SHARD_BYTES = 15 * REDIS_BYTES_PER_S
# What Redis holds at once of a worker's chains. Those of other shards are not saved meanwhile.
REDIS_SAVED_BYTES = 256e6


# Chains of small shards are packed together, as much as one command to Redis carries.
BUNDLE_BYTES = COMMAND_BYTES - 4096
_DESCRIPTION_BYTES = 80


@dataclass(frozen=True, slots=True)
class ShardCopy:
    """A copy of a shard's chains between two steps.

    Attributes:
        active: the shard.
        snapshots: its chains.
        image_steps: image-steps that are done in the shard.
    """

    active: ActiveShard
    snapshots: Sequence[Snapshot]
    image_steps: int

    @property
    def remembers(self) -> bool:
        """Tell whether x_0_hat is saved as well."""
        return self.snapshots[0].request.plan.remembers

    @property
    def size_bytes(self) -> int:
        """Bytes of the packed chains, and some for what describes each."""
        tensors = 2 if self.remembers else 1
        return len(self.snapshots) * (tensors * self.snapshots[0].x.nbytes + _DESCRIPTION_BYTES)


class SnapshotSaver:
    """Copies chains when they are due, and sends the copies.

    `save` never waits for a store. While copies wait to be sent no others are made, so that memory
    is bounded. If there is no memory for a copy, it is skipped, and from then on half as much is
    copied together.
    """

    def __init__(
        self,
        shards: ShardLeases,
        writer: JobWriter,
        messages: MessageQueue,
        *,
        time_share: float = TIME_SHARE,
        redis_bytes_per_s: float = REDIS_BYTES_PER_S,
        redis_saved_bytes: float = REDIS_SAVED_BYTES,
        copy_bytes: int = COPY_BYTES,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
        counters: WorkerCounters | None = None,
    ) -> None:
        """Make a saver that has copied nothing yet.

        Args:
            shards: tells which leases are still ours.
            writer: where the packed chains are sent.
            messages: where ended jobs are reported.
            time_share: part of the loop's time that copies may take.
            redis_bytes_per_s: packed chains that may be sent to Redis, in bytes a second.
            redis_saved_bytes: packed chains that Redis may hold at once.
            copy_bytes: bytes that are copied together; at least one chain.
            clock: the time in seconds, from any beginning.
            cpu_clock: seconds of processor time of the calling thread. It measures what a copy
                costs, because on a busy machine a copy is interrupted.
            counters: where saved shards are counted.
        """
        self._shards = shards
        self._writer = writer
        self._messages = messages
        self._time_share = time_share
        self._redis_bytes_per_s = redis_bytes_per_s
        self._redis_saved_bytes = redis_saved_bytes
        self._copy_bytes = copy_bytes
        # No copy has been made since the log spoke of memory.
        self._warned = False
        self._counters = counters or WorkerCounters()
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._copies: Sequence[ShardCopy] = ()
        self._work = threading.Event()
        self._sending = threading.Lock()
        self._not_before = 0.0

    @property
    def copies(self) -> Sequence[ShardCopy]:
        """The copies that wait to be sent."""
        return self._copies

    @property
    def copy_bytes(self) -> int:
        """Bytes that are copied together now."""
        return self._copy_bytes

    def due(self, active: Collection[ActiveShard]) -> list[ActiveShard]:
        """Return the shards to save now, those with the oldest copy first.

        A shard is due SAVE_EVERY_S after its last copy, a suspect after SUSPECT_EVERY_S, if it has
        done a step since, and if Redis has room for it.
        """
        now = self._clock()
        if self._copies or now < self._not_before:
            return []
        self._not_before = now + POLL_EVERY_S
        due = [s for s in _oldest_copy_first(active) if _is_due(s, now)]
        return list(_first_bytes(self._fitting(due, active), self._copy_bytes))

    def save(self, shards: Sequence[ActiveShard]) -> None:
        """Copy the chains of the shards, and have them sent.

        None of the chains may be leaving its engine. Without memory nothing is copied; the shards
        are due again later.
        """
        began, cpu_began = self._clock(), self._cpu_clock()
        self._copies = self._copied(shards, began) or ()
        cost_s = self._cpu_clock() - cpu_began
        self._not_before = max(self._not_before, began + cost_s / self._time_share)
        self._work.set()

    def run_once(self) -> None:
        """Wait a moment for copies, and send them. What does not arrive is copied again later.

        Raises:
            RedisError: Redis did not answer, or refused.
            StoreFault: the results store did not take large chains.
        """
        if self._work.wait(2 * POLL_EVERY_S):
            self._work.clear()
            with self._sending:
                self._send()

    def finish(self, active: Iterable[ActiveShard], within_s: float) -> None:
        """Save all shards before the worker exits.

        Args:
            active: the shards, of whose chains none may be leaving its engine.
            within_s: seconds after which no more copies are made.

        Raises:
            MemoryError: there is no memory for a copy of one chain.
            RedisError: Redis did not answer, or refused.
            StoreFault: the results store did not take large chains.
        """
        until = self._clock() + within_s
        left = _oldest_copy_first(active)
        if self._sending.acquire(timeout=within_s):
            try:
                while left and self._clock() < until:
                    batch = list(_first_bytes(left, self._copy_bytes))
                    copies = self._copied(batch, self._clock())
                    if copies is None:
                        if self._copy_bytes > 1:
                            continue
                        raise MemoryError("there is no memory for a copy of one chain")
                    left = left[len(batch) :]
                    self._copies = copies
                    self._send()
            finally:
                self._sending.release()
        if left:
            log.warning(
                "no time to save %d shards as they stand: their latest seconds are to be computed "
                "again",
                len(left),
                extra=event("worker.unsent"),
            )

    def _fitting(
        self, due: Iterable[ActiveShard], active: Iterable[ActiveShard]
    ) -> Iterator[ActiveShard]:
        """Yield the shards that are in Redis already or that there is room for."""
        room = self._redis_saved_bytes - sum(self._in_redis(s) for s in active if s.saved_steps)
        for shard in due:
            if not shard.saved_steps:
                size_bytes = self._in_redis(shard)
                if size_bytes > room:
                    continue
                room -= size_bytes
            yield shard

    def _in_redis(self, shard: ActiveShard) -> int:
        """Return the bytes that the shard's chains take in Redis, at most."""
        size_bytes = len(shard.left) * shard.model.chain_bytes
        return 0 if self._writer.goes_to_store(size_bytes) else size_bytes

    def _copied(self, shards: Sequence[ActiveShard], now: float) -> list[ShardCopy] | None:
        """Copy the shards' chains; None if there is no memory for that."""
        try:
            copies = _copied(shards, now, self._copy_bytes)
        except Exception as error:
            # A snapshot is worth no worker.
            if not is_out_of_memory(error):
                raise
            self._copy_bytes = max(1, self._copy_bytes // 2)
            if not self._warned:
                log.warning(
                    "there is no memory to copy the chains of %d shards for a save (%s); it is "
                    "tried again with half as many at once; a smaller DDPM_POOL_IMAGES leaves more",
                    len(shards),
                    client_reason(error),
                    extra=event("memory.short"),
                )
            self._warned = True
            return None
        self._warned = False
        return copies

    def _send(self) -> None:
        try:
            # The other shards have ended meanwhile.
            copies = [copy for copy in self._copies if self._shards.holds(copy.active.lease)]
            began = self._clock()
            bundles = list(_bundles(copies))
            saves = [_pack(bundle) for bundle in bundles]
            self._delay_next(began, saves)
            wanted = self._writer.save(saves)
            for copy in copies:
                shard = copy.active.lease.shard
                if shard.id in wanted:
                    copy.active.saved_steps = copy.image_steps
                    self._counters.snapshots += 1
                else:
                    self._messages.put(JobEnded(shard.job))
        finally:
            self._copies = ()

    def _delay_next(self, began: float, saves: Iterable[Save]) -> None:
        """Delay the next copy by what these cost Redis, whether they arrive or not."""
        size_bytes = sum(
            len(save.chains)
            for save in saves
            if len(save.shards) > 1 or not self._writer.goes_to_store(len(save.chains))
        )
        self._not_before = max(self._not_before, began + size_bytes / self._redis_bytes_per_s)


def _bundles(copies: Iterable[ShardCopy]) -> Iterator[Sequence[ShardCopy]]:
    """Put copies together that are packed into one blob of at most BUNDLE_BYTES.

    They are of one model, and the plans of all remember x_0_hat or none does. The copy of a large
    shard stays alone.
    """
    open_bundles = defaultdict[tuple[LoadedModel, bool], list[ShardCopy]](list)
    sizes = defaultdict[tuple[LoadedModel, bool], int](int)
    for copy in copies:
        alike = copy.active.model, copy.remembers
        if sizes[alike] + copy.size_bytes > BUNDLE_BYTES and open_bundles[alike]:
            yield open_bundles.pop(alike)
            sizes[alike] = 0
        open_bundles[alike].append(copy)
        sizes[alike] += copy.size_bytes
    yield from open_bundles.values()


def _pack(copies: Sequence[ShardCopy]) -> Save:
    model = copies[0].active.model
    by_shard = {copy.active.lease.shard.id: copy.snapshots for copy in copies}
    return Save(
        pack(by_shard, model.precision, model.fingerprint),
        [(copy.active.lease.shard, copy.image_steps) for copy in copies],
    )


def _oldest_copy_first(active: Iterable[ActiveShard]) -> list[ActiveShard]:
    return sorted(active, key=lambda shard: shard.copied_at)


def _is_due(shard: ActiveShard, now: float) -> bool:
    age_s = now - shard.copied_at
    if age_s < SUSPECT_EVERY_S:
        return False
    if age_s < SAVE_EVERY_S and not shard.is_suspect():
        return False
    return shard.progress()[1] > shard.saved_steps


def _first_bytes(shards: Iterable[ActiveShard], most_bytes: int) -> Iterator[ActiveShard]:
    """Yield as many shards as may be copied together; at least one."""
    size_bytes = 0
    for shard in shards:
        yield shard
        size_bytes += len(shard.left) * shard.model.chain_bytes
        if size_bytes >= most_bytes:
            return


def _copied(shards: Sequence[ActiveShard], now: float, most_bytes: int) -> list[ShardCopy]:
    """Copy all chains of a model together.

    Otherwise a thousand shards of one image each would take a thousand copies.
    """
    by_model = defaultdict[LoadedModel, list[ActiveShard]](list)
    for shard in shards:
        shard.copied_at = now
        by_model[shard.model].append(shard)
    return [
        copy
        for model, of_model in by_model.items()
        for copy in _copied_of(model, of_model, most_bytes)
    ]


def _copied_of(
    model: LoadedModel, shards: Sequence[ActiveShard], most_bytes: int
) -> Iterator[ShardCopy]:
    chains = [chain for shard in shards for chain in shard.chains()]
    at_once = max(1, most_bytes // model.chain_bytes)
    snapshots = (
        snapshot
        for first in range(0, len(chains), at_once)
        for snapshot in model.engine.snapshot(chains[first : first + at_once])
    )
    for shard in shards:
        # A chain whose image could not leave the engine has no row left to take. It is computed
        # again, and is no other chain's loss.
        of_shard = islice(snapshots, len(shard.left))
        unfinished = [s for s in of_shard if s.row < len(s.request.plan)]
        if unfinished:
            yield ShardCopy(shard, unfinished, shard.progress()[1])
