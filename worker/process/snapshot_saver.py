"""Snapshots of running chains, so that another worker can go on where this one was lost.

The loop copies the chains between two steps. A thread packs and sends the copies.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from worker.backends.host import is_out_of_memory
from worker.engine.chain import Snapshot
from worker.engine.snapshot_codec import pack
from worker.process.active_shard import ActiveShard
from worker.process.job_writer import JobWriter
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
# Redis takes 5 ms for a megabyte and serves nobody meanwhile, so large chains are saved less often.
REDIS_BYTES_PER_S = 10e6


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
        copy_bytes: int = COPY_BYTES,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        """Make a saver that has copied nothing yet.

        Args:
            shards: tells which leases are still ours.
            writer: where the packed chains are sent.
            messages: where ended jobs are reported.
            time_share: part of the loop's time that copies may take.
            redis_bytes_per_s: packed chains that may be sent to Redis, in bytes a second.
            copy_bytes: bytes that are copied together; at least one chain.
            clock: the time in seconds, from any beginning.
            cpu_clock: seconds of processor time of the calling thread. It measures what a copy
                costs, because on a busy machine a copy is interrupted.
        """
        self._shards = shards
        self._writer = writer
        self._messages = messages
        self._time_share = time_share
        self._redis_bytes_per_s = redis_bytes_per_s
        self._copy_bytes = copy_bytes
        # No copy has been made since the log spoke of memory.
        self._warned = False
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

    def due(self, active: Iterable[ActiveShard]) -> list[ActiveShard]:
        """Return the shards to save now, those with the oldest copy first.

        A shard is due SAVE_EVERY_S after its last copy, a suspect after SUSPECT_EVERY_S, if it has
        done a step since.
        """
        now = self._clock()
        if self._copies or now < self._not_before:
            return []
        self._not_before = now + POLL_EVERY_S
        due = (s for s in _oldest_copy_first(active) if _is_due(s, now))
        return list(_first_bytes(due, self._copy_bytes))

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
            )

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
            blobs = [pack(copy.snapshots, copy.active.model.precision) for copy in copies]
            self._delay_next(began, blobs)
            entries = [
                (copy.active.lease.shard, blob, copy.image_steps)
                for copy, blob in zip(copies, blobs, strict=True)
            ]
            for copy, is_wanted in zip(copies, self._writer.save(entries), strict=True):
                if is_wanted:
                    copy.active.saved_steps = copy.image_steps
                else:
                    self._messages.put(JobEnded(copy.active.lease.shard.job))
        finally:
            self._copies = ()

    def _delay_next(self, began: float, blobs: Iterable[bytes]) -> None:
        """Delay the next copy by what these cost Redis, whether they arrive or not."""
        size_bytes = sum(len(blob) for blob in blobs if not self._writer.goes_to_store(blob))
        self._not_before = max(self._not_before, began + size_bytes / self._redis_bytes_per_s)


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
