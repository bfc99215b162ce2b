"""The rescue of shards whose worker is gone: here too, so that a job says the truth when no worker is left to say it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

from redis import Redis
from redis.exceptions import RedisError

from app.operation.background import background
from worker.jobs.reaper import REAP_EVERY_S, Reaper

log = logging.getLogger(__name__)


class ReaperTask:
    """One turn every few seconds, in a thread: the scripts are those of the workers, who know no asyncio."""

    def __init__(self, redis: Redis) -> None:
        self._redis, self._reaper = redis, Reaper(redis)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        with closing(self._redis):
            async with background(self._run()):
                yield

    async def _run(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self._reaper.run_once)
            except RedisError as error:
                log.warning(
                    "lost shards cannot be looked for (%s); again in %.0f s", error, REAP_EVERY_S
                )
            await asyncio.sleep(REAP_EVERY_S)
