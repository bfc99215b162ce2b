"""Chains on their way into safety: copied by the step's thread between two steps, packed and sent by a thread of their own."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from worker.engine.chain import Snapshot
from worker.engine.snapshot_codec import pack
from worker.process.active_shard import ActiveShard
from worker.process.job_writer import JobWriter
from worker.process.loaded_model import LoadedModel
from worker.process.messages import JobEnded, MessageQueue
from worker.process.shard_leases import ShardLeases

log = logging.getLogger(__name__)
SAVE_EVERY_S = 1.0  # what a kill costs, at most
_SUSPECT_EVERY_S = 0.2  # so that chance has little time: a suspect that was killed from outside has come on by then
_LOOK_EVERY_S = 0.1
_SHARE = 0.01  # of the step's thread's time, at most: a copy that took long puts the next one off
_COPY_BYTES = 64 * 1024 * 1024  # copied at once, unless one shard is larger
_REDIS_BYTES_PER_S = 10e6  # the server takes 5 ms a megabyte, in which it serves nobody: large pictures are saved less often


@dataclass(frozen=True, slots=True)
class ShardCopy:
    """Of a shard's chains between two steps, with the image-steps that are done in the shard."""

    held: ActiveShard
    snapshots: Sequence[Snapshot]
    image_steps: int


class SnapshotSaver:
    """`save` never waits for a store: while copies are on their way, no others are made, so that memory is bounded."""

    def __init__(self, shards: ShardLeases, results: JobWriter, inbox: MessageQueue) -> None:
        self._shards, self._results, self._inbox = shards, results, inbox
        self._copies: Sequence[ShardCopy] = ()
        self._work = threading.Event()
        self._sending = threading.Lock()
        self._not_before = 0.0

    def due(self, held: Iterable[ActiveShard]) -> list[ActiveShard]:
        """Those shards whose turn it is to be saved."""
        now = time.monotonic()
        if self._copies or now < self._not_before:
            return []
        self._not_before = now + _LOOK_EVERY_S
        return list(_first_bytes(shard for shard in _oldest_first(held) if _is_due(shard, now)))

    def save(self, shards: Sequence[ActiveShard]) -> None:
        """Copy their chains. None may be leaving its engine."""
        began, cost = (
            time.monotonic(),
            time.thread_time(),
        )  # not by the clock: on a busy machine a copy is interrupted
        self._copies = _copied(shards)
        self._not_before = max(self._not_before, began + (time.thread_time() - cost) / _SHARE)
        self._work.set()

    def run_once(self) -> None:
        """Send what was copied. What does not arrive is copied anew, in its turn."""
        if self._work.wait(2 * _LOOK_EVERY_S):
            self._work.clear()
            with self._sending:
                self._send()

    def finish(self, held: Iterable[ActiveShard], within_s: float) -> None:
        """All that is held, as it stands, before the worker exits. Raises what the stores raise."""
        until = time.monotonic() + within_s
        left = _oldest_first(held)
        if self._sending.acquire(timeout=within_s):
            try:
                while left and time.monotonic() < until:
                    batch = list(_first_bytes(left))
                    left = left[len(batch) :]
                    self._copies = _copied(batch)
                    self._send()
            finally:
                self._sending.release()
        if left:
            log.warning(
                "no time to save %d shards as they stand: their latest seconds are to be computed again",
                len(left),
            )

    def _send(self) -> None:
        try:
            copies = [
                copy for copy in self._copies if self._shards.holds(copy.held.lease)
            ]  # the others have ended meanwhile
            began, blobs = (
                time.monotonic(),
                [pack(copy.snapshots, copy.held.model.precision) for copy in copies],
            )
            to_redis = sum(len(blob) for blob in blobs if not self._results.goes_to_store(blob))
            self._not_before = max(
                self._not_before, began + to_redis / _REDIS_BYTES_PER_S
            )  # whether it arrives or not
            entries = [
                (copy.held.lease.shard, blob, copy.image_steps)
                for copy, blob in zip(copies, blobs, strict=True)
            ]
            for copy, wanted in zip(copies, self._results.save(entries), strict=True):
                self._heed(copy, wanted)
        finally:
            self._copies = ()

    def _heed(self, copy: ShardCopy, wanted: bool) -> None:
        if wanted:
            copy.held.kept = copy.image_steps
        else:
            self._inbox.put(JobEnded(copy.held.lease.shard.job))


def _oldest_first(held: Iterable[ActiveShard]) -> list[ActiveShard]:
    return sorted(held, key=lambda shard: shard.copied_at)


def _is_due(shard: ActiveShard, now: float) -> bool:
    """SAVE_EVERY_S after its last copy, a suspect after _SUSPECT_EVERY_S, if it has done a step since."""
    age_s = now - shard.copied_at
    if age_s < _SUSPECT_EVERY_S:
        return False
    return (age_s >= SAVE_EVERY_S or shard.is_suspect()) and shard.progress()[1] > shard.kept


def _first_bytes(shards: Iterable[ActiveShard]) -> Iterator[ActiveShard]:
    """As many as may be copied at once; at least one."""
    size = 0
    for shard in shards:
        yield shard
        size += len(shard.left) * shard.model.chain_bytes
        if size >= _COPY_BYTES:
            return


def _copied(shards: Sequence[ActiveShard]) -> list[ShardCopy]:
    """All chains of a model in one go: a thousand shards of one image each would take a thousand copies."""
    now, by_model = time.monotonic(), defaultdict[LoadedModel, list[ActiveShard]](list)
    for shard in shards:
        shard.copied_at = now
        by_model[shard.model].append(shard)
    copies = []
    for model, of_model in by_model.items():
        snapshots = iter(
            model.engine.snapshot([chain for shard in of_model for chain in shard.chains()])
        )
        for shard in of_model:
            # one whose picture could not leave the engine has no row left to take: it is drawn anew, and is no other's loss
            if unfinished := [
                s for s in islice(snapshots, len(shard.left)) if s.row < len(s.request.plan)
            ]:
                copies.append(ShardCopy(shard, unfinished, shard.progress()[1]))
    return copies
