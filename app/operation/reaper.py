"""The reaper of shards whose worker is gone, in the API.

Workers run it too. Here it serves when no worker is left, so that a job's state is still right.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

from redis import Redis
from redis.exceptions import RedisError

from app.operation.background import background
from worker.jobs.reaper import REAP_EVERY_S, Reaper
from worker.logs import event

log = logging.getLogger(__name__)


class ReaperTask:
    """Runs the workers' reaper once every few seconds, in a thread, since it knows no asyncio."""

    def __init__(self, redis: Redis) -> None:
        """Prepare a reaper; `redis` is closed with it."""
        self._redis = redis
        self._reaper = Reaper(redis)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the reaper while the block runs."""
        with closing(self._redis):
            async with background(self._run()):
                yield

    async def _run(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self._reaper.run_once)
            except RedisError as error:
                log.warning(
                    "lost shards cannot be looked for (%s); again in %.0f s",
                    error,
                    REAP_EVERY_S,
                    extra=event("reaper.waits"),
                )
            await asyncio.sleep(REAP_EVERY_S)
