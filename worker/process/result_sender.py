"""Results on their way out: images, progress and the ends of shards.

A thread encodes and sends them, so that no step waits for Redis or for zlib.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import Tensor

from worker.jobs.domain import Precision
from worker.process.job_writer import JobWriter, encode
from worker.process.messages import JobEnded, MessageQueue
from worker.process.shard_leases import Lease, ShardLeases
from worker.results.store import StoreFault

log = logging.getLogger(__name__)
PROGRESS_EVERY_S = 0.05
FULL_BYTES = 256 * 1024 * 1024
FULL_IMAGES = 512
_FLUSH_WAITS_S = 1.0


@dataclass(frozen=True, slots=True)
class ResultBatch:
    """Results of one shard that are sent together.

    Attributes:
        lease: this worker's hold on the shard.
        images: finished images with their indices, uint8, shape (C, H, W).
        precision: precision of the network that made them.
        failure: code and message with which the job fails; None otherwise.
        last: whether nothing of the shard is to come.
    """

    lease: Lease
    images: list[tuple[int, Tensor]] = field(default_factory=list)
    precision: Precision = "fp32"
    failure: tuple[str, str] | None = None
    last: bool = False


# A shard's lease, the step of its least advanced image, and its image-steps done.
ProgressReport = tuple[Lease, int, int]


class ResultSender:
    """Sends batches of results in order, and the newest progress of each shard.

    `post` and `report` never wait. While Redis is away batches gather here.
    """

    def __init__(
        self,
        shards: ShardLeases,
        writer: JobWriter,
        messages: MessageQueue,
        *,
        progress_every_s: float = PROGRESS_EVERY_S,
        full_bytes: int = FULL_BYTES,
        full_images: int = FULL_IMAGES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make a sender with nothing to send.

        Args:
            shards: where shards are finished or given back.
            writer: where results are written.
            messages: where ended jobs are reported.
            progress_every_s: pause between two reports of progress while batches are sent.
            full_bytes: bytes of images with which the sender is full.
            full_images: images with which the sender is full.
            clock: the time in seconds, from any beginning.
        """
        self._shards = shards
        self._writer = writer
        self._messages = messages
        self._progress_every_s = progress_every_s
        self._full_bytes = full_bytes
        self._full_images = full_images
        self._clock = clock
        self._batches: deque[ResultBatch] = deque()
        # The newest report of each shard, by the shard's id.
        self._progress: dict[str, ProgressReport] = {}
        self._progress_lock = threading.Lock()
        self._work = threading.Event()
        self._sending = threading.Lock()

    def post(self, batch: ResultBatch) -> None:
        """Send the batch after all that were posted before."""
        if batch.last:
            # A report from before the end would set the shard's progress back.
            with self._progress_lock:
                self._progress = {
                    shard: report
                    for shard, report in self._progress.items()
                    if report[0] is not batch.lease
                }
        self._batches.append(batch)
        self._work.set()

    def report(self, reports: Iterable[ProgressReport]) -> None:
        """Send the progress of shards; of each shard only the newest report counts."""
        with self._progress_lock:
            self._progress |= {report[0].shard.id: report for report in reports}
        self._work.set()

    def is_full(self) -> bool:
        """Tell whether so many images wait that the worker should take no more shards.

        Redis gives shards even while the results store is away or slow. Memory sets the limit, and
        so does what a kill would cost.
        """
        images = [pixels for batch in list(self._batches) for _, pixels in batch.images]
        size_bytes = sum(pixels.nbytes for pixels in images)
        return len(images) >= self._full_images or size_bytes >= self._full_bytes

    def run_once(self) -> None:
        """Wait a moment for work, and send all there is.

        Raises:
            RedisError: Redis did not answer, or refused.
            StoreFault: the results store did not take an image.
        """
        self._work.wait(self._progress_every_s * 10)
        self._work.clear()
        with self._sending:
            self._send_all()

    def flush(self) -> None:
        """Send all there is before the worker exits, so that it need not be computed again.

        Raises:
            RedisError: Redis did not answer, or refused.
        """
        if not self._sending.acquire(timeout=_FLUSH_WAITS_S):
            log.warning(
                "a store is too slow: %d batches are left for another worker to draw again",
                len(self._batches),
            )
            return
        try:
            self._send_all()
        # Redis may answer all the same, so that the shards can be given back.
        except StoreFault as fault:
            log.warning(
                "%d batches of finished images are left for another worker to draw again: %s",
                len(self._batches),
                fault,
            )
        finally:
            self._sending.release()

    def _send_all(self) -> None:
        """Send all batches, and progress in between, since a results store may be slow."""
        self._send_progress()
        reported_at = self._clock()
        while self._batches:
            self._send(self._batches[0])
            # Removed only when Redis has it, and the results store if there is one.
            self._batches.popleft()
            if self._clock() - reported_at >= self._progress_every_s:
                self._send_progress()
                reported_at = self._clock()

    def _send_progress(self) -> None:
        with self._progress_lock:
            reports, self._progress = list(self._progress.values()), {}
        if not reports:
            return
        wanted = self._writer.progress(
            [(lease.shard, least, image_steps) for lease, least, image_steps in reports]
        )
        for (lease, _, _), is_wanted in zip(reports, wanted, strict=True):
            if not is_wanted:
                self._report_ended(lease)

    def _send(self, batch: ResultBatch) -> None:
        shard = batch.lease.shard
        if batch.images:
            images = [
                (index, encode(pixels, shard.recipe, index, batch.precision))
                for index, pixels in batch.images
            ]
            if not self._writer.publish(shard, images, batch.last):
                self._report_ended(batch.lease)
        if batch.failure:
            self._writer.fail(shard.job, *batch.failure)
        if batch.last:
            self._end_shard(batch.lease)

    def _end_shard(self, lease: Lease) -> None:
        """Finish the shard, or give it back if images are missing.

        Both are fenced: if the lease is lost, nothing is changed.
        """
        if not self._writer.settled(lease.shard):
            if self._shards.give_back(lease):
                log.warning(
                    "shard %s has images without a hash after all; it goes back", lease.shard.id
                )
        elif self._shards.finish(lease):
            self._writer.forget(lease.shard)

    def _report_ended(self, lease: Lease) -> None:
        self._messages.put(JobEnded(lease.shard.job))
