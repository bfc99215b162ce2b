"""Reads of many clients in one round trip to Redis.

Keys that are asked for while one read is under way go into the next read together.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Generic, TypeVar

from redis.asyncio import Redis

from app.records.queue_reader import QueueReader
from app.records.reader import StoredJob, buffer_read, parse_read
from worker.jobs.keys import job_key

K = TypeVar("K")
A = TypeVar("A")


class Coalescer(ABC, Generic[K, A]):
    """Answers many askers with few round trips, over one connection.

    A thousand clients that ask at the same moment wait for each other, not for connections.
    Each gets an answer that was read after it asked, so it sees the effect of what it did before.
    """

    # Keys in a round trip: the longest that Redis and the event loop are held up.
    at_once = 16

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._asked: dict[K, asyncio.Future[A]] = {}
        self._work: asyncio.Task[None] | None = None

    async def read(self, key: K) -> A:
        """Read one key, in the same round trip as the keys of other askers.

        Raises:
            redis.RedisError: The round trip failed.
        """
        # One asker may leave while the others wait.
        return await asyncio.shield(self._ask(key))

    async def read_all(self, keys: Iterable[K]) -> list[A]:
        """Read many keys, `at_once` of them in a round trip.

        Raises:
            redis.RedisError: A round trip failed.
        """
        futures = [self._ask(key) for key in keys]
        if futures:
            # Not gather(): it would cancel what other askers wait for.
            await asyncio.wait(futures)
        return [future.result() for future in futures]

    @abstractmethod
    async def read_many(self, keys: Sequence[K]) -> Sequence[A]:
        """Read an answer for each of at most `at_once` keys, in one round trip."""

    def _ask(self, key: K) -> asyncio.Future[A]:
        """Give the future that all askers of `key` share; no asker may cancel it."""
        if key not in self._asked:
            self._asked[key] = asyncio.get_running_loop().create_future()
        if self._work is None:
            self._work = asyncio.create_task(self._answer())
        return self._asked[key]

    async def _answer(self) -> None:
        while self._asked:
            asked = {key: self._asked.pop(key) for key in list(self._asked)[: self.at_once]}
            try:
                answers = await self.read_many(list(asked))
                for future, answer in zip(asked.values(), answers, strict=True):
                    future.set_result(answer)
            except Exception as error:  # a bug too: nobody is to wait for ever
                # Those who asked meanwhile need not wait for a second timeout.
                # They may even have asked for the same key.
                _fail([*asked.values(), *self._asked.values()], error)
                self._asked = {}
        self._work = None


class JobReader(Coalescer[str, StoredJob]):
    """Reads all that a job's status says, by job id, and all open work when that has become old."""

    def __init__(self, redis: Redis, queue: QueueReader) -> None:
        super().__init__(redis)
        self._queue = queue

    async def read_many(self, keys: Sequence[str]) -> Sequence[StoredJob]:
        """Read the jobs with these ids."""
        async with self._redis.pipeline(transaction=False) as pipe:
            buffer_read(pipe, *keys)
            self._queue.buffer_if_due(pipe)
            answer, *queue = await pipe.execute()
        self._queue.take(queue)
        return parse_read(answer)


class StateReader(Coalescer[str, tuple[bytes | None, bytes | None]]):
    """Reads the state and the owner of a job, by job id. Both are None where it is unknown."""

    async def read_many(self, keys: Sequence[str]) -> Sequence[tuple[bytes | None, bytes | None]]:
        """Read states and owners of the jobs with these ids."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for job in keys:
                pipe.hmget(job_key(job), ["state", "owner"])
            return [(state, owner) for state, owner in await pipe.execute()]


def _fail(asked: Iterable[asyncio.Future[Any]], error: Exception) -> None:
    for future in asked:
        future.set_exception(error)
        # asyncio logs an exception that nobody has retrieved, as when all askers have left.
        future.exception()
