"""Wakes whoever waits for a job: one subscription a process, however many wait."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from redis.asyncio import Redis
from redis.exceptions import RedisError

from worker.contract import CHANGES

log = logging.getLogger(__name__)
_LONGEST_PAUSE_S = 2.0


class Notifier:
    """Messages may be lost while Redis is away, so whoever waits also looks for itself now and then."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    def __len__(self) -> int:
        """Jobs that somebody waits for."""
        return len(self._waiting)

    @contextmanager
    def listen(self, job: str) -> Iterator[asyncio.Event]:
        """An event that is set at every change of the job's state."""
        event = self.join(job)
        try:
            yield event
        finally:
            self.leave(job, event)

    def join(self, job: str) -> asyncio.Event:
        """As `listen`, until `leave`."""
        event = asyncio.Event()
        self._waiting[job].add(event)
        return event

    def leave(self, job: str, event: asyncio.Event) -> None:
        self._waiting[job].discard(event)
        if not self._waiting[job]:
            del self._waiting[job]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        pause_s = 0.05
        while True:
            try:
                async for job in self._changed():
                    pause_s = 0.05
                    self._wake(job)
            except RedisError as error:
                log.warning("lost the subscription to %s (%s); again in %.2f s", CHANGES, error, pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _changed(self) -> AsyncIterator[str]:
        async with self._redis.pubsub(ignore_subscribe_messages=True) as subscription:
            await subscription.subscribe(CHANGES)
            async for message in subscription.listen():
                yield message["data"].decode().partition(" ")[0]

    def _wake(self, job: str) -> None:
        for event in self._waiting.get(job, ()):
            event.set()
