"""Whether the job store takes writes: a server that only reads is not ready for jobs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from redis.asyncio import Redis
from redis.exceptions import RedisError

from worker.jobs.keys import PROBE

_EVERY_S = 1.0
_PROBE_LIVES_S = 5


class WriteProbe:
    """Writes a small key once a second at most, however many ask."""

    def __init__(self, redis: Redis, clock: Callable[[], float] = time.monotonic) -> None:
        self._redis = redis
        self._clock = clock
        self._lock = asyncio.Lock()
        self._written_at = float("-inf")
        self._error: RedisError | None = None

    async def check(self) -> None:
        """Check that the job store took a write within the last second.

        Raises:
            RedisError: It did not answer, or refused.
        """
        async with self._lock:
            if self._clock() - self._written_at >= _EVERY_S:
                await self._write()
            error = self._error
        if error:
            raise error.with_traceback(None)

    async def _write(self) -> None:
        try:
            await self._redis.set(PROBE, 1, ex=_PROBE_LIVES_S)
            self._error = None
        except RedisError as error:
            self._error = error
        self._written_at = self._clock()
