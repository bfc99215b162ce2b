"""Writes of many clients in few pipelines, each of which waits once for the disk.

One pipeline a client would need a connection each. Under `appendfsync everysec` each of them waits
for up to a second, and more clients than connections would wait for a second time, or get a 503.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from app.jobs.durability import DurabilityCheck
from app.records.queue_reader import QueueReader

# Pipelines at once, which is less than the client has connections.
_PIPELINES = 16
# Writes in a pipeline: 10 ms of Redis.
_AT_ONCE = 64
# Each pipeline gathers writes for so long, times the number of those that are under way. Under
# `everysec` the sixteen are spread over half a second, and a lone client waits for nobody.
_GATHER_S = 0.004

Write = Callable[[Pipeline], object]
Written = tuple[Any, bool]


class GroupCommit:
    """Runs writes together and tells each client whether its own is on disk."""

    def __init__(self, redis: Redis, queue: QueueReader) -> None:
        """Take a client of the job store, and what is read along with the writes.

        The timeout of `redis` must be longer than app.jobs.durability.WAIT_S: the server answers
        only when its disk has the writes, or when that time is over.
        """
        self._redis = redis
        self._queue = queue
        self._durability = DurabilityCheck(redis)
        self._waiting: list[tuple[Write, asyncio.Future[Written]]] = []
        self._starting: asyncio.Task[None] | None = None
        self._under_way: set[asyncio.Task[None]] = set()

    async def run(self, write: Write) -> Written:
        """Run a write.

        Args:
            write: Buffers one command on the pipeline that it is given.

        Returns:
            The command's answer, and whether the write is on disk.

        Raises:
            redis.RedisError: The server refused the command, or did not answer.
        """
        future: asyncio.Future[Written] = asyncio.get_running_loop().create_future()
        self._waiting.append((write, future))
        if self._starting is None:
            self._starting = asyncio.create_task(self._start_all())
        return await future

    async def _start_all(self) -> None:
        """Start pipelines until nobody waits for one."""
        while self._waiting:
            if len(self._under_way) < _PIPELINES:
                await asyncio.sleep(_GATHER_S * len(self._under_way))
                batch, self._waiting = self._waiting[:_AT_ONCE], self._waiting[_AT_ONCE:]
                task = asyncio.create_task(self._run(batch))
                self._under_way.add(task)
                task.add_done_callback(self._under_way.discard)
            else:
                await asyncio.wait(self._under_way, return_when=asyncio.FIRST_COMPLETED)
        self._starting = None

    async def _run(self, batch: Sequence[tuple[Write, asyncio.Future[Written]]]) -> None:
        try:
            answers, is_on_disk = await self._execute([write for write, _ in batch])
        except Exception as error:  # a bug too: nobody is to wait for ever
            # Those who came meanwhile need not wait for a second timeout.
            _fail([*batch, *self._waiting], error)
            self._waiting = []
            return
        for answer, (write, future) in zip(answers, batch, strict=True):
            if isinstance(answer, Exception):
                _fail([(write, future)], answer)
            elif not future.done():
                future.set_result((answer, is_on_disk))

    async def _execute(self, writes: Sequence[Write]) -> tuple[Sequence[Any], bool]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for write in writes:
                write(pipe)
            is_due = self._queue.buffer_if_due(pipe)
            self._durability.request(pipe)
            answers = await pipe.execute(raise_on_error=False)
        end = len(writes) + is_due
        queue = answers[len(writes) : end]
        # What was written must not be answered with the failure of a read.
        if not any(isinstance(answer, Exception) for answer in queue):
            self._queue.take(queue)
        return answers[: len(writes)], await self._durability.confirmed(answers[end:])


def _fail(batch: Sequence[tuple[Write, asyncio.Future[Written]]], error: Exception) -> None:
    for _, future in batch:
        # A client may have left.
        if not future.done():
            future.set_exception(error)
