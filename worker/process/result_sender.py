"""Results on their way out: images, progress and the ends of shards.

One thread sends them and others encode them, so that no step waits for Redis or for zlib, and no
round trip waits for zlib either.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

from torch import Tensor

from worker.jobs.domain import Precision
from worker.logs import event, together
from worker.process.job_writer import JobWriter, ShardResults, encode
from worker.process.messages import JobEnded, MessageQueue
from worker.process.shard_leases import Lease, ShardLeases
from worker.results.store import StoreFault
from worker.tracing import Tracing

log = logging.getLogger(__name__)
PROGRESS_EVERY_S = 0.05
FULL_BYTES = 256 * 1024 * 1024
FULL_IMAGES = 512
ENCODERS = 2
# Bytes of pixels that a thread encodes in one go; at least one batch.
_ENCODED_TOGETHER_BYTES = 32 * 1024
# Batches that are sent together, and bytes of their images, at least one batch. A results store
# takes a shard's images at a time, so that progress is reported while it is slow.
_TOGETHER = 256
_TOGETHER_BYTES = 8 * 1024 * 1024
_FLUSH_WAITS_S = 1.0
_FLUSH_WITHIN_S = 3.0


@dataclass(frozen=True, slots=True)
class ResultBatch:
    """Results of one shard that are sent together.

    Attributes:
        lease: this worker's hold on the shard.
        images: finished images with their indices, uint8, shape (C, H, W).
        precision: precision of the network that made them.
        fingerprint: of the worker that made them, for the model.
        failure: code and message with which the job fails; None otherwise.
        last: whether nothing of the shard is to come.
    """

    lease: Lease
    images: list[tuple[int, Tensor]] = field(default_factory=list)
    precision: Precision = "fp32"
    fingerprint: str = ""
    failure: tuple[str, str] | None = None
    last: bool = False


# A shard's lease, the step of its least advanced image, and its image-steps done.
ProgressReport = tuple[Lease, int, int]


@dataclass(frozen=True, slots=True)
class _Encoding:
    """A batch whose images are being encoded, with those of the batches that were posted with it.

    Attributes:
        batch: the batch.
        encoded: the images as PNGs with their indices, of each batch.
        number: which of them are this batch's.
        size_bytes: bytes of its pixels.
        posted_at: seconds since the epoch.
    """

    batch: ResultBatch
    encoded: Future[list[list[tuple[int, bytes]]]]
    number: int
    size_bytes: int
    posted_at: float

    def pngs(self) -> list[tuple[int, bytes]]:
        """Wait until the images are encoded, and return them with their indices."""
        return self.encoded.result()[self.number]


class ResultSender:
    """Sends batches of results in order, and the newest progress of each shard.

    `post` and `report` never wait. Other threads encode the images. What waits is sent together, in
    a few round trips for all shards. While Redis is away batches gather here.
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
        together: int = _TOGETHER,
        encoders: int = ENCODERS,
        has_room: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        tracing: Tracing | None = None,
    ) -> None:
        """Make a sender with nothing to send.

        Args:
            shards: where shards are finished or given back.
            writer: where results are written.
            messages: where ended jobs are reported.
            progress_every_s: pause between two reports of progress while batches are sent.
            full_bytes: bytes of images with which the sender is full.
            full_images: images with which the sender is full.
            together: batches that are sent together at most.
            encoders: threads that encode images.
            has_room: is called when the sender is full no longer.
            clock: the time in seconds, from any beginning.
            tracing: makes spans of shards; None where nobody asks for them.
        """
        self._tracing = tracing
        self._shards = shards
        self._writer = writer
        self._messages = messages
        self._progress_every_s = progress_every_s
        self._full_bytes = full_bytes
        self._full_images = full_images
        self._together = together
        self._has_room = has_room
        self._clock = clock
        # zlib lets other threads run. The threads start when they are first needed.
        self._encoders = ThreadPoolExecutor(encoders, "encoder")
        self._batches: deque[_Encoding] = deque()
        # Images of the batches, and their bytes.
        self._images = 0
        self._image_bytes = 0
        # The newest report of each shard, by the shard's id.
        self._progress: dict[str, ProgressReport] = {}
        self._lock = threading.Lock()
        self._work = threading.Event()
        self._sending = threading.Lock()

    def post(self, batch: ResultBatch) -> None:
        """Send the batch after all that were posted before."""
        self.post_all([batch])

    def post_all(self, batches: Iterable[ResultBatch]) -> None:
        """Send the batches, of different shards, after all that were posted before.

        Small ones are encoded together. For each one alone, a thread would have to be woken.
        """
        encodings = [
            encoding for together in _small_together(batches) for encoding in self._encode(together)
        ]
        with self._lock:
            for encoding in encodings:
                batch = encoding.batch
                if batch.last:
                    # A report from before the end would set the shard's progress back.
                    report = self._progress.get(batch.lease.shard.id)
                    if report and report[0] is batch.lease:
                        del self._progress[batch.lease.shard.id]
                self._images += len(batch.images)
                self._image_bytes += encoding.size_bytes
            self._batches.extend(encodings)
        self._work.set()

    def report(self, reports: Iterable[ProgressReport]) -> None:
        """Send the progress of shards; of each shard only the newest report counts."""
        with self._lock:
            self._progress |= {report[0].shard.id: report for report in reports}
        self._work.set()

    def is_full(self) -> bool:
        """Tell whether so many images wait that the worker should take no more shards.

        Redis gives shards even while the results store is away or slow. Memory sets the limit, and
        so does what a kill would cost.
        """
        return self._images >= self._full_images or self._image_bytes >= self._full_bytes

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

    def flush(self, within_s: float = _FLUSH_WITHIN_S) -> None:
        """Send what there is before the worker exits, so that it need not be computed again.

        Args:
            within_s: seconds after which no more is begun.

        Raises:
            RedisError: Redis did not answer, or refused.
        """
        reason = "a store is too slow"
        if self._sending.acquire(timeout=_FLUSH_WAITS_S):
            try:
                self._send_all(until=self._clock() + within_s)
            # Redis may answer all the same, so that the shards can be given back.
            except StoreFault as fault:
                reason = str(fault)
            finally:
                self._sending.release()
        if self._batches:
            log.warning(
                "%d batches of finished images are left for another worker to draw again: %s",
                len(self._batches),
                reason,
                extra=event("worker.unsent"),
            )

    def _encode(self, batches: Sequence[ResultBatch]) -> list[_Encoding]:
        if any(batch.images for batch in batches):
            encoded = self._encoders.submit(lambda: [_encode_all(batch) for batch in batches])
        else:
            encoded = Future()
            encoded.set_result([[] for _ in batches])
        return [
            _Encoding(batch, encoded, number, _pixel_bytes(batch), time.time())
            for number, batch in enumerate(batches)
        ]

    def _send_all(self, until: float = math.inf) -> None:
        """Send all batches, and progress in between, since a results store may be slow."""
        self._send_progress()
        reported_at = self._clock()
        while self._batches and self._clock() < until:
            self._send(self._next_batches())
            if self._clock() - reported_at >= self._progress_every_s:
                self._send_progress()
                reported_at = self._clock()

    def _send_progress(self) -> None:
        with self._lock:
            reports, self._progress = list(self._progress.values()), {}
        if not reports:
            return
        wanted = self._writer.progress(
            [(lease.shard, least, image_steps) for lease, least, image_steps in reports]
        )
        for (lease, _, _), is_wanted in zip(reports, wanted, strict=True):
            if not is_wanted:
                self._report_ended(lease)

    def _next_batches(self) -> list[_Encoding]:
        """Return the batches that are sent together next; they stay where they are."""
        most = 1 if self._writer.external else self._together
        some: list[_Encoding] = []
        size_bytes = 0
        for encoding in islice(self._batches, most):
            if some and size_bytes + encoding.size_bytes > _TOGETHER_BYTES:
                break
            some.append(encoding)
            size_bytes += encoding.size_bytes
        return some

    def _send(self, encodings: Sequence[_Encoding]) -> None:
        """Send the first batches, and remove them when Redis and the results store have them."""
        results, leases = _by_shard(encodings)
        wanted = self._writer.publish_all(results)
        ended: list[Lease] = []
        for result, lease, is_wanted in zip(results, leases, wanted, strict=True):
            if not is_wanted:
                self._report_ended(lease)
            if result.failure and is_wanted:
                _log_failure(lease, *result.failure)
            if result.last:
                ended.append(lease)
        if ended:
            outcomes = self._end_shards(ended)
            if self._tracing:
                self._trace(encodings, ended, outcomes)
        was_full = self.is_full()
        with self._lock:
            for encoding in encodings:
                self._batches.popleft()
                self._images -= len(encoding.batch.images)
                self._image_bytes -= encoding.size_bytes
        # Without this the intake, which takes nothing meanwhile, would find out when it asks again.
        if was_full and not self.is_full():
            self._has_room()

    def _trace(
        self, encodings: Iterable[_Encoding], ended: Iterable[Lease], outcomes: Iterable[str]
    ) -> None:
        """Make the spans of shards that have come to their end."""
        assert self._tracing is not None
        drawn_at = {id(e.batch.lease): e.posted_at for e in encodings if e.batch.last}
        for lease, outcome in zip(ended, outcomes, strict=True):
            shard = lease.shard
            self._tracing.shard(
                lease.origin.traceparent,
                posted_at=lease.posted_at,
                taken_at=lease.execution.created_at,
                drawn_at=drawn_at[id(lease)],
                published_at=time.time(),
                outcome=outcome,
                job=shard.job,
                shard=shard.id,
                owner=shard.owner,
                model=shard.recipe.model,
                images=shard.count,
                steps=shard.recipe.steps,
                attempt=lease.attempt,
                worker=self._shards.name,
            )

    def _end_shards(self, leases: Sequence[Lease]) -> Sequence[str]:
        """Finish the shards, or give them back if images are missing.

        Both are fenced: if the lease is lost, nothing is changed.

        Returns:
            What became of each.
        """
        endings = self._shards.finish_all(leases)
        finished = [
            lease for lease, ending in zip(leases, endings, strict=True) if ending == "finished"
        ]
        with together():
            for lease in finished:
                log.info(
                    "shard %s is finished",
                    lease.shard.id,
                    extra=event("shard.finished", **lease.log_fields),
                )
        for lease, ending in zip(leases, endings, strict=True):
            if ending == "finished":
                self._writer.forget_stored(lease.shard)
            elif ending == "unsettled" and self._shards.give_back(lease):
                log.warning(
                    "shard %s has images without a hash after all; it goes back",
                    lease.shard.id,
                    extra=event("shard.unsettled", **lease.log_fields),
                )
        return endings

    def _report_ended(self, lease: Lease) -> None:
        self._messages.put(JobEnded(lease.shard.job))


def _log_failure(lease: Lease, code: str, message: str) -> None:
    log.error(
        "job %s failed (%s): %s",
        lease.shard.job,
        code,
        message,
        extra=event("job.failed", **lease.log_fields, reason=code),
    )


def _pixel_bytes(batch: ResultBatch) -> int:
    return sum(pixels.nbytes for _, pixels in batch.images)


def _small_together(batches: Iterable[ResultBatch]) -> Iterator[list[ResultBatch]]:
    """Put batches together that have _ENCODED_TOGETHER_BYTES at most; a larger one stays alone."""
    together: list[ResultBatch] = []
    size_bytes = 0
    for batch in batches:
        its_bytes = _pixel_bytes(batch)
        if together and size_bytes + its_bytes > _ENCODED_TOGETHER_BYTES:
            yield together
            together, size_bytes = [], 0
        together.append(batch)
        size_bytes += its_bytes
    if together:
        yield together


def _encode_all(batch: ResultBatch) -> list[tuple[int, bytes]]:
    recipe_of = batch.lease.shard.recipe_of
    return [
        (
            index,
            encode(pixels, recipe_of(index), index, batch.precision, fingerprint=batch.fingerprint),
        )
        for index, pixels in batch.images
    ]


def _by_shard(encodings: Iterable[_Encoding]) -> tuple[list[ShardResults], list[Lease]]:
    """Put the batches of each lease together, and wait until they are encoded."""
    by_lease: dict[int, list[_Encoding]] = {}
    for encoding in encodings:
        by_lease.setdefault(id(encoding.batch.lease), []).append(encoding)
    results = [
        ShardResults(
            of_one[0].batch.lease.shard,
            [image for encoding in of_one for image in encoding.pngs()],
            next((e.batch.failure for e in of_one if e.batch.failure), None),
            any(encoding.batch.last for encoding in of_one),
        )
        for of_one in by_lease.values()
    ]
    return results, [of_one[0].batch.lease for of_one in by_lease.values()]
