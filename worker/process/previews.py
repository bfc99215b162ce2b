"""Previews of running images: x_0_hat, for whoever asks.

The API asks on the channel `PREVIEWS`, and again while nothing has come. The answer is a key that
lives for half a second. So no preview is made that nobody looks at, and an image that a thousand
clients look at is encoded twice a second. Previews are copied between two steps. A thread encodes
and sends them.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import cast

from redis import Redis

from models.diffusion.sampling import to_bytes
from models.networks.memory import is_out_of_memory
from worker.engine.chain import Preview
from worker.jobs.keys import PREVIEW_LIVES_MS, preview_key
from worker.logs import event
from worker.process.active_shard import ActiveShard
from worker.process.job_writer import encode
from worker.process.loaded_model import LoadedModel

log = logging.getLogger(__name__)
AT_ONCE = 64
AT_ONCE_BYTES = 8 * 1024 * 1024
# More requests than this are dropped; their clients ask again.
MOST_REQUESTS = 1024
_POLL_EVERY_S = 0.2

PreviewCopies = Sequence[tuple[ActiveShard, Preview]]


class PreviewSender:
    """Copies and sends the previews that are asked for.

    `ask` and `copy` never wait. While copies wait to be sent no others are made, so that memory is
    bounded.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        lives_ms: int = PREVIEW_LIVES_MS,
        at_once: int = AT_ONCE,
        at_once_bytes: int = AT_ONCE_BYTES,
        most_requests: int = MOST_REQUESTS,
    ) -> None:
        """Make a sender that was asked for nothing yet.

        Args:
            redis: where previews are sent.
            lives_ms: time to live of a preview, in milliseconds.
            at_once: images that are copied and sent together.
            at_once_bytes: bytes that are copied together, at least one image.
            most_requests: images that may be asked for at once.
        """
        self._redis = redis
        self._lives_ms = lives_ms
        self._at_once = at_once
        self._at_once_bytes = at_once_bytes
        self._most_requests = most_requests
        # Job and index of each image that is asked for, the oldest request first.
        self._requests: dict[tuple[str, int], None] = {}
        self._lock = threading.Lock()
        self._copies: PreviewCopies = ()
        self._work = threading.Event()

    @property
    def requests(self) -> list[tuple[str, int]]:
        """Job and index of each image that is asked for."""
        with self._lock:
            return list(self._requests)

    @property
    def copies(self) -> PreviewCopies:
        """The previews that wait to be sent."""
        return self._copies

    def ask(self, job: str, index: int) -> None:
        """Ask for an image, which another worker may have. Any thread may call this."""
        with self._lock:
            if len(self._requests) < self._most_requests:
                self._requests[job, index] = None

    def copy(self, active: Iterable[ActiveShard]) -> None:
        """Copy the images that were asked for and are here. Call this between two steps.

        Requests for other images are forgotten.
        """
        if not self._requests or self._copies:
            return
        with self._lock:
            requests, self._requests = self._requests, {}
        wanted = defaultdict[str, list[int]](list)
        for job, index in requests:
            wanted[job].append(index)
        here = [(s, i) for s in active for i in wanted.get(s.lease.shard.job, ()) if i in s.left]
        most = self._how_many_at_once(here)
        for shard, index in here[most:]:
            self.ask(shard.lease.shard.job, index)
        try:
            self._copies = _copied(here[:most])
        except Exception as error:
            # A preview is worth no chain.
            if not is_out_of_memory(error):
                raise
            log.warning(
                "there is no memory left on the device to show %d images",
                most,
                extra=event("memory.short"),
            )
        if self._copies:
            self._work.set()

    def run_once(self) -> None:
        """Send what was copied. A preview that does not arrive is asked for again.

        Raises:
            RedisError: Redis did not answer, or refused.
        """
        if not self._work.wait(_POLL_EVERY_S):
            return
        self._work.clear()
        try:
            self._send(self._copies)
        finally:
            self._copies = ()

    def _send(self, copies: PreviewCopies) -> None:
        with self._redis.pipeline(transaction=False) as pipe:
            for active, preview in copies:
                shard, index = active.lease.shard, preview.request.index
                pixels, model = to_bytes(preview.x_0_hat()), active.model
                png = encode(
                    pixels,
                    shard.recipe_of(index),
                    index,
                    model.precision,
                    preview.row,
                    model.fingerprint,
                )
                pipe.set(preview_key(shard.job, index), png, px=self._lives_ms)
            pipe.execute()

    def _how_many_at_once(self, images: Sequence[tuple[ActiveShard, int]]) -> int:
        """Return how many of the images may be copied together; at least one."""
        size_bytes = many = 0
        for shard, _ in images[: self._at_once]:
            size_bytes += shard.model.chain_bytes // 2
            if many and size_bytes > self._at_once_bytes:
                break
            many += 1
        return many


def _copied(images: Iterable[tuple[ActiveShard, int]]) -> PreviewCopies:
    """Copy the images, all of one model together."""
    by_model = defaultdict[LoadedModel, dict[tuple[str, int], ActiveShard]](dict)
    for shard, index in images:
        by_model[shard.model][shard.lease.shard.id, index] = shard
    return [
        (chains[cast("tuple[str, int]", preview.request.chain)], preview)
        for model, chains in by_model.items()
        for preview in model.engine.preview(chains)
    ]
