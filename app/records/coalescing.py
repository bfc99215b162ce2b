"""Looks of many clients at once, in one round trip: what is asked for while one is under way goes along with the next."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Generic, TypeVar

from redis.asyncio import Redis

from app.records.reader import StoredJob, buffer_read, parse_read
from worker.jobs.keys import job_key

K = TypeVar("K")
A = TypeVar("A")


class Coalescer(ABC, Generic[K, A]):
    """However many ask, one connection is busy: a thousand clients at the same moment wait for each other, not for connections.

    Who asks is answered by a look that began afterwards, so everybody sees what they have done before.
    """

    at_once = 16  # asked for in a round trip: Redis and the event loop are held up by no more

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._asked: dict[K, asyncio.Future[A]] = {}
        self._work: asyncio.Task[None] | None = None

    async def at(self, key: K) -> A:
        """Raises what redis raises."""
        return await asyncio.shield(self._ask(key))  # of whom one may leave while the others wait

    def _ask(self, key: K) -> asyncio.Future[A]:
        """Shared by all who ask: not to be cancelled with any of them."""
        if key not in self._asked:
            self._asked[key] = asyncio.get_running_loop().create_future()
        if self._work is None:
            self._work = asyncio.create_task(self._answer())
        return self._asked[key]

    async def _answer(self) -> None:
        while self._asked:
            asked = {key: self._asked.pop(key) for key in list(self._asked)[: self.at_once]}
            try:
                for future, answers in zip(
                    asked.values(), await self._read(list(asked)), strict=True
                ):
                    future.set_result(answers)
            except Exception as error:  # a bug, too: nobody is to wait for ever
                # who has asked meanwhile need not wait for a second timeout; it may have been for the same
                _fail([*asked.values(), *self._asked.values()], error)
                self._asked = {}
        self._work = None

    @abstractmethod
    async def _read(self, keys: Sequence[K]) -> Sequence[A]:
        """One for each, in one round trip."""


class JobReader(Coalescer[str, StoredJob]):
    """All that a status says."""

    async def _read(self, keys: Sequence[str]) -> Sequence[StoredJob]:
        async with self._redis.pipeline(transaction=False) as pipe:
            buffer_read(pipe, *keys)
            return parse_read(*await pipe.execute())


class StateReader(Coalescer[str, tuple[bytes | None, bytes | None]]):
    """State and owner of a job, None both where it is unknown."""

    async def _read(self, keys: Sequence[str]) -> Sequence[tuple[bytes | None, bytes | None]]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for job in keys:
                pipe.hmget(job_key(job), ["state", "owner"])
            return [(state, owner) for state, owner in await pipe.execute()]


def _fail(asked: Iterable[asyncio.Future[Any]], error: Exception) -> None:
    for future in asked:
        future.set_exception(error)
        future.exception()  # asyncio complains of one that nobody has seen, as when all have left
