"""What goes out: PNGs, progress and the ends of shards, sent by a thread so that no step waits for Redis or for zlib."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor

from worker.jobs.domain import Precision
from worker.process.job_writer import JobWriter, encode
from worker.process.messages import JobEnded, MessageQueue
from worker.process.shard_leases import Lease, ShardLeases
from worker.results.store import StoreFault

log = logging.getLogger(__name__)
PROGRESS_EVERY_S = 0.05
_FLUSH_WAITS_S = 1.0
_FULL_BYTES, _FULL_IMAGES = 256 * 1024 * 1024, 512


@dataclass(frozen=True, slots=True)
class ResultBatch:
    """Finished images of a shard by index, uint8 (C, H, W); `last` where nothing of the shard is to come."""

    lease: Lease
    images: list[tuple[int, Tensor]] = field(default_factory=list)
    precision: Precision = "fp32"  # of the network that drew them
    failure: tuple[str, str] | None = None  # code and message: the job ends as failed
    last: bool = False


ProgressReport = tuple[
    Lease, int, int
]  # step of the shard's least advanced image, image-steps done


class ResultSender:
    """`post` and `report` never wait. While Redis is away parcels gather here; of a shard's reports only the newest counts."""

    def __init__(self, shards: ShardLeases, results: JobWriter, inbox: MessageQueue) -> None:
        self._shards, self._results, self._inbox = shards, results, inbox
        self._parcels: deque[ResultBatch] = deque()
        self._progress: dict[str, ProgressReport] = {}  # by shard
        self._noting = threading.Lock()
        self._work = threading.Event()
        self._sending = threading.Lock()

    def post(self, parcel: ResultBatch) -> None:
        if parcel.last:  # what was noted before it would set the shard back
            with self._noting:
                self._progress = {
                    shard: report
                    for shard, report in self._progress.items()
                    if report[0] is not parcel.lease
                }
        self._parcels.append(parcel)
        self._work.set()

    def report(self, reports: Iterable[ProgressReport]) -> None:
        with self._noting:
            self._progress |= {report[0].shard.id: report for report in reports}
        self._work.set()

    def is_full(self) -> bool:
        """While the results store is away or slow Redis still gives shards: memory, and what a kill costs, set the end."""
        images = [pixels for parcel in list(self._parcels) for _, pixels in parcel.images]
        return len(images) >= _FULL_IMAGES or sum(pixels.nbytes for pixels in images) >= _FULL_BYTES

    def run_once(self) -> None:
        """Send what there is, once it is there."""
        self._work.wait(PROGRESS_EVERY_S * 10)
        self._work.clear()
        with self._sending:
            self._send_all()

    def flush(self) -> None:
        """Before the worker exits: what is finished need not be computed again. Raises what Redis raises."""
        if not self._sending.acquire(timeout=_FLUSH_WAITS_S):
            log.warning(
                "a store is too slow: %d parcels are left for another worker to draw again",
                len(self._parcels),
            )
            return
        try:
            self._send_all()
        except StoreFault as fault:  # Redis may answer all the same: give the shards back
            log.warning(
                "%d parcels of finished images are left for another worker to draw again: %s",
                len(self._parcels),
                fault,
            )
        finally:
            self._sending.release()

    def _send_all(self) -> None:
        """All parcels, and progress before the first of them and then as often as it is told: a store may be slow."""
        self._send_progress()
        told_at = time.monotonic()
        while self._parcels:
            self._send(self._parcels[0])
            self._parcels.popleft()  # only when Redis has it, and the results store where there is one
            if time.monotonic() - told_at >= PROGRESS_EVERY_S:
                self._send_progress()
                told_at = time.monotonic()

    def _send_progress(self) -> None:
        with self._noting:
            reports, self._progress = list(self._progress.values()), {}
        if reports:
            wanted = self._results.progress(
                [(lease.shard, least, image_steps) for lease, least, image_steps in reports]
            )
            for (lease, _, _), stays in zip(reports, wanted, strict=True):
                self._heed(lease, stays)

    def _send(self, parcel: ResultBatch) -> None:
        shard = parcel.lease.shard
        if parcel.images:
            images = [
                (index, encode(pixels, shard.recipe, index, parcel.precision))
                for index, pixels in parcel.images
            ]
            self._heed(parcel.lease, self._results.publish(shard, images, parcel.last))
        if parcel.failure:
            self._results.fail(shard.job, *parcel.failure)
        if parcel.last:
            self._close(parcel.lease)

    def _close(self, lease: Lease) -> None:
        """Both ends are fenced: of a lease that is lost, nothing is touched."""
        if not self._results.settled(lease.shard):
            if self._shards.give_back(lease):
                log.warning(
                    "shard %s has images without a hash after all; it goes back", lease.shard.id
                )
        elif self._shards.finish(lease):
            self._results.forget(lease.shard)

    def _heed(self, lease: Lease, wanted: bool) -> None:
        if not wanted:
            self._inbox.put(JobEnded(lease.shard.job))
