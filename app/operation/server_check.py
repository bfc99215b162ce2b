"""The look at the server's settings, when the API starts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress

from redis import Redis
from redis.exceptions import RedisError

from app.operation.background import background
from worker.jobs.backoff import Backoff
from worker.jobs.server_check import ClusterMode, check_server
from worker.logs import event

log = logging.getLogger(__name__)
# The start waits for so long, and no longer: Redis need not be there yet.
_START_WITHIN_S = 2.0
_BACKOFF = Backoff(first_s=1.0, longest_s=10.0)


class ServerCheck:
    """Looks at the server's settings once, as soon as it answers."""

    def __init__(self, redis: Redis) -> None:
        """Prepare the look; `redis` is closed with it."""
        self._redis = redis
        self._done = False

    async def first(self) -> None:
        """Look, unless that has been done, and give up soon if Redis does not answer.

        Raises:
            ClusterMode: the server is a node of a cluster. The log says so.
        """
        with suppress(RedisError, TimeoutError):
            await asyncio.wait_for(self._look(), _START_WITHIN_S)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Look before the block runs, or beside it if Redis does not answer at once.

        Raises:
            ClusterMode: the server is a node of a cluster.
        """
        with closing(self._redis):
            await self.first()
            async with background(self._later()):
                yield

    async def _later(self) -> None:
        pauses = _BACKOFF.pauses()
        while not self._done:
            await asyncio.sleep(pauses.next_s())
            # Other lines of the log say that Redis does not answer.
            with suppress(RedisError, ClusterMode):
                await self._look()

    async def _look(self) -> None:
        if self._done:
            return
        try:
            await asyncio.to_thread(check_server, self._redis)
            self._done = True
        except ClusterMode as refused:
            self._done = True
            log.error("%s", refused, extra=event("redis.refused"))
            raise
