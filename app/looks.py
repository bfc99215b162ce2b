"""Looks of many clients at once, in one round trip: what is asked for while one is under way goes along with the next."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, cast

from redis.asyncio import Redis

from app.look import ANSWERS, look_at
from worker.contract import WORKERS, job_key

_AT_ONCE = 64  # jobs a round trip: Redis and the event loop are held up by no more

Answers = Sequence[Any]


class _Together(ABC):
    """However many ask, one connection is busy: a thousand clients at the same moment wait for each other, not for connections.

    Who asks for a job is answered by a look that began afterwards, so everybody sees what they have done before.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._asked: dict[str, asyncio.Future[Answers]] = {}
        self._work: asyncio.Task[None] | None = None

    async def at(self, job: str) -> Answers:
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
    async def _read(self, jobs: Sequence[str]) -> Sequence[Answers]:
        """One for each job, in one round trip."""


class Looks(_Together):
    """What `app.look.seen` wants."""

    async def _read(self, jobs: Sequence[str]) -> Sequence[Answers]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for job in jobs:
                look_at(pipe, job)
            pipe.hvals(WORKERS)
            *answers, workers = await pipe.execute()
        own = ANSWERS - 1
        return [[*answers[first : first + own], workers] for first in range(0, len(answers), own)]


class States(_Together):
    """State and owner of a job, None both where it is unknown."""

    async def _read(self, jobs: Sequence[str]) -> Sequence[Answers]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for job in jobs:
                pipe.hmget(job_key(job), ["state", "owner"])
            return cast("Sequence[Answers]", await pipe.execute())


def _fail(asked: Iterable[asyncio.Future[Answers]], error: Exception) -> None:
    for future in asked:
        future.set_exception(error)
        future.exception()  # asyncio complains of one that nobody has seen, as when all have left
