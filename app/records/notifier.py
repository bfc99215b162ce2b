"""Wakes whoever waits for a change of a job's state.

A process has one subscription and reads the states once a second, however many clients wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress

from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.operation.background import background
from worker.jobs.backoff import Backoff
from worker.jobs.keys import CHANGES, job_key
from worker.jobs.scripts import load
from worker.logs import event

log = logging.getLogger(__name__)
_BACKOFF = Backoff(first_s=0.05, longest_s=2.0)
POLL_EVERY_S = 1.0
_READ_STATES = load("read_states")


class Notifier:
    """Sets the events of those who wait, at each message about their job and at each change read.

    Messages are not enough. They may be lost while Redis is away, or with a connection that is
    dead without anybody knowing. So the states are read too.
    """

    def __init__(self, redis: Redis, poll_every_s: float = POLL_EVERY_S) -> None:
        """Prepare, without touching Redis.

        Args:
            redis: Where jobs and messages are.
            poll_every_s: Seconds between two reads of the states.
        """
        self._redis = redis
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        # States as they were read last.
        self._states: dict[str, bytes | None] = {}
        self.poll_every_s = poll_every_s
        self.closed = False

    def __len__(self) -> int:
        """Count the jobs that somebody waits for."""
        return len(self._waiting)

    @contextmanager
    def listen(self, job: str) -> Iterator[asyncio.Event]:
        """Give an event that is set at each change of the job's state, and at times without one."""
        event = self.join(job)
        try:
            yield event
        finally:
            self.leave(job, event)

    def close(self) -> None:
        """Wake everybody, as there is nothing to wait for any more."""
        self.closed = True
        for job in self._waiting:
            self._wake(job)

    def join(self, job: str) -> asyncio.Event:
        """Give an event as `listen` does; `leave` must be called with it."""
        event = asyncio.Event()
        self._waiting[job].add(event)
        return event

    def leave(self, job: str, event: asyncio.Event) -> None:
        """End what `join` began."""
        self._waiting[job].discard(event)
        if not self._waiting[job]:
            del self._waiting[job]

    def running(self) -> AbstractAsyncContextManager[None]:
        """Subscribe and poll while the block runs."""
        return background(self._listen(), self._poll())

    async def _listen(self) -> None:
        pauses = _BACKOFF.pauses()
        while True:
            try:
                async for job in self._changed():
                    pauses.reset()
                    self._wake(job)
                pause_s = pauses.next_s()
            except RedisError as error:
                pause_s = pauses.next_s()
                log.warning(
                    "lost the subscription to %s (%s); again in %.2f s",
                    CHANGES,
                    error,
                    pause_s,
                    extra=event("changes.lost"),
                )
            await asyncio.sleep(pause_s)

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self.poll_every_s)
            jobs = list(self._waiting)
            with suppress(RedisError):  # the subscription logs it
                read = (
                    await _READ_STATES.call(self._redis, records=map(job_key, jobs)) if jobs else []
                )
                states = dict(zip(jobs, read, strict=True))
                for job in jobs:
                    if states[job] != self._states.get(job, b"not read yet"):
                        self._wake(job)
                self._states = states

    async def _changed(self) -> AsyncIterator[str]:
        async with self._redis.pubsub(ignore_subscribe_messages=True) as subscription:
            await subscription.subscribe(CHANGES)
            async for message in subscription.listen():
                yield message["data"].decode().partition(" ")[0]

    def _wake(self, job: str) -> None:
        for waiting in self._waiting.get(job, ()):
            waiting.set()


async def set_within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for the event, and say whether it was set in time."""
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False
