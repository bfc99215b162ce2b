"""Looks of many clients at once, in one round trip: what is asked for while one is under way goes along with the next."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Generic, TypeVar

from redis.asyncio import Redis

from app.look import Found, found, look
from worker.contract import job_key

_AT_ONCE = 16  # jobs a round trip: Redis and the event loop are held up by no more

A = TypeVar("A")


class _Together(ABC, Generic[A]):
    """However many ask, one connection is busy: a thousand clients at the same moment wait for each other, not for connections.

    Who asks for a job is answered by a look that began afterwards, so everybody sees what they have done before.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._asked: dict[str, asyncio.Future[A]] = {}
        self._work: asyncio.Task[None] | None = None

    async def at(self, job: str) -> A:
        """Raises what redis raises."""
        if job not in self._asked:
            self._asked[job] = asyncio.get_running_loop().create_future()
        answers = self._asked[job]
        if self._work is None:
            self._work = asyncio.create_task(self._run())
        return await asyncio.shield(answers)  # of whom one may leave while the others wait

    async def _run(self) -> None:
        while self._asked:
            asked = {job: self._asked.pop(job) for job in list(self._asked)[:_AT_ONCE]}
            try:
                for future, answers in zip(asked.values(), await self._read(list(asked)), strict=True):
                    future.set_result(answers)
            except Exception as error:  # a bug, too: nobody is to wait for ever
                # who has asked meanwhile need not wait for a second timeout; it may have been for the same job
                _fail([*asked.values(), *self._asked.values()], error)
                self._asked = {}
        self._work = None

    @abstractmethod
    async def _read(self, jobs: Sequence[str]) -> Sequence[A]:
        """One for each job, in one round trip."""


class Looks(_Together[Found]):
    """All that a status says."""

    async def _read(self, jobs: Sequence[str]) -> Sequence[Found]:
        async with self._redis.pipeline(transaction=False) as pipe:
            look(pipe, *jobs)
            return found(*await pipe.execute())


class States(_Together[tuple[bytes | None, bytes | None]]):
    """State and owner of a job, None both where it is unknown."""

    async def _read(self, jobs: Sequence[str]) -> Sequence[tuple[bytes | None, bytes | None]]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for job in jobs:
                pipe.hmget(job_key(job), ["state", "owner"])
            return [(state, owner) for state, owner in await pipe.execute()]


def _fail(asked: Iterable[asyncio.Future[Any]], error: Exception) -> None:
    for future in asked:
        future.set_exception(error)
        future.exception()  # asyncio complains of one that nobody has seen, as when all have left
