"""What running images look like so far: x_0_hat, for whoever asks. Copied between two steps, encoded and sent by a thread.

An API asks on `PREVIEWS`, and again while nothing has come; the answer is a key that lives for half a second. So nothing is
made that nobody looks at, and an image that a thousand look at is made twice a second.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import cast

import torch
from redis import Redis

from models.diffusion.sampling import to_bytes
from worker.engine.chain import Preview
from worker.jobs.keys import PREVIEW_LIVES_MS, preview_key
from worker.process.active_shard import ActiveShard
from worker.process.job_writer import encode
from worker.process.loaded_model import LoadedModel

log = logging.getLogger(__name__)
_AT_ONCE, _AT_ONCE_BYTES = 64, 8 * 1024 * 1024  # images copied and sent together, one at least
_LOOK_EVERY_S = 0.2
_MOST_ASKED = 1024  # who comes beyond asks again


class PreviewSender:
    """`ask` and `take` never wait. While some are on their way no others are copied, so that memory is bounded."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._asked: dict[tuple[str, int], None] = {}  # job and index, the oldest first
        self._lock = threading.Lock()
        self._copies: Sequence[tuple[ActiveShard, Preview]] = ()
        self._work = threading.Event()

    def ask(self, job: str, index: int) -> None:
        """From any thread; for an image that may be anywhere."""
        with self._lock:
            if len(self._asked) < _MOST_ASKED:
                self._asked[job, index] = None

    def take(self, held: Iterable[ActiveShard]) -> None:
        """Copy what was asked for and is here, between two steps. Who asked for what is elsewhere is forgotten."""
        if not self._asked or self._copies:
            return
        with self._lock:
            asked, self._asked = self._asked, {}
        wanted = defaultdict[str, list[int]](list)
        for job, index in asked:
            wanted[job].append(index)
        here = [(s, i) for s in held for i in wanted.get(s.lease.shard.job, ()) if i in s.left]
        now, later = _bounded(here)
        for shard, index in later:
            self.ask(shard.lease.shard.job, index)
        try:
            self._copies = _copied(now)
        except torch.OutOfMemoryError:  # a look is worth no chain
            log.warning("there is no memory left on the device to show %d images", len(now))
        if self._copies:
            self._work.set()

    def run_once(self) -> None:
        """Send what was copied. What does not arrive is asked for again."""
        if not self._work.wait(_LOOK_EVERY_S):
            return
        self._work.clear()
        try:
            with self._redis.pipeline(transaction=False) as pipe:
                for held, preview in self._copies:
                    shard, index = held.lease.shard, preview.request.index
                    png = encode(
                        to_bytes(preview.x_0_hat()),
                        shard.recipe,
                        index,
                        held.model.precision,
                        preview.row,
                    )
                    pipe.set(preview_key(shard.job, index), png, px=PREVIEW_LIVES_MS)
                pipe.execute()
        finally:
            self._copies = ()


def _bounded(
    images: Sequence[tuple[ActiveShard, int]],
) -> tuple[Sequence[tuple[ActiveShard, int]], Sequence[tuple[ActiveShard, int]]]:
    """Those that may be copied together, and the others."""
    size = most = 0
    for shard, _ in images[:_AT_ONCE]:
        size += shard.model.chain_bytes // 2
        if most and size > _AT_ONCE_BYTES:
            break
        most += 1
    return images[:most], images[most:]


def _copied(images: Iterable[tuple[ActiveShard, int]]) -> list[tuple[ActiveShard, Preview]]:
    """All of a model in one go."""
    by_model = defaultdict[LoadedModel, dict[tuple[str, int], ActiveShard]](dict)
    for shard, index in images:
        by_model[shard.model][shard.lease.shard.id, index] = shard
    return [
        (chains[cast("tuple[str, int]", preview.request.chain)], preview)
        for model, chains in by_model.items()
        for preview in model.engine.preview(chains)
    ]
