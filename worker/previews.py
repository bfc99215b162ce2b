"""What running images look like so far: x_0_hat, for whoever asks. Copied between two steps, encoded and sent by a thread.

An API asks on `PREVIEWS`, and again while nothing has come; the answer is a key that lives for half a second. So nothing is
made that nobody looks at, and an image that a thousand look at is made twice a second.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import cast

from redis import Redis

from models.sampling import to_bytes
from worker.contract import PREVIEW_LIVES_MS, preview_key
from worker.engine import Preview
from worker.held import Held
from worker.loaded import LoadedModel
from worker.results import encode

_AT_ONCE = 64  # images copied and sent together
_MOST_ASKED = 1024  # who comes beyond asks again


class Previews:
    """`ask` and `take` never wait. While some are on their way no others are copied, so that memory is bounded."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._asked: dict[tuple[str, int], None] = {}  # job and index, the oldest first
        self._lock = threading.Lock()
        self._copies: Sequence[tuple[Held, Preview]] = ()
        self._work = threading.Event()

    def ask(self, job: str, index: int) -> None:
        """From any thread; for an image that may be anywhere."""
        with self._lock:
            if len(self._asked) < _MOST_ASKED:
                self._asked[job, index] = None

    def take(self, held: Iterable[Held]) -> None:
        """Copy what was asked for and is here, between two steps."""
        if not self._asked or self._copies:
            return
        wanted = defaultdict[str, list[int]](list)
        with self._lock:
            for job, index in list(self._asked)[:_AT_ONCE]:
                del self._asked[job, index]
                wanted[job].append(index)
        by_model = defaultdict[LoadedModel, dict[tuple[str, int], Held]](dict)
        for shard in held:
            for index in wanted.get(shard.lease.shard.job, ()):
                if index in shard.left:
                    by_model[shard.model][shard.lease.shard.id, index] = shard
        copies = []
        for model, chains in by_model.items():
            copies += [
                (chains[cast("tuple[str, int]", preview.request.chain)], preview) for preview in model.engine.preview(chains)
            ]
        self._copies = copies
        if copies:
            self._work.set()

    def turn(self) -> None:
        """Send what was copied. What does not arrive is asked for again."""
        if not self._work.wait(1.0):
            return
        self._work.clear()
        try:
            with self._redis.pipeline(transaction=False) as pipe:
                for held, preview in self._copies:
                    shard, index = held.lease.shard, preview.request.index
                    png = encode(to_bytes(preview.x_0_hat()), shard.recipe, index, held.model.precision, preview.row)
                    pipe.set(preview_key(shard.job, index), png, px=PREVIEW_LIVES_MS)
                pipe.execute()
        finally:
            self._copies = ()
