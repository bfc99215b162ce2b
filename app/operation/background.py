"""Loops that run beside the requests, for as long as the process serves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

from worker.logs import event

log = logging.getLogger(__name__)
_CANCEL_AGAIN_S = 0.5
_failures: ContextVar[list[str] | None] = ContextVar("failures", default=None)


@contextmanager
def noting_failures(names: list[str]) -> Iterator[None]:
    """Add to `names` the names of the loops that are begun in the block and fail.

    A process that lives without one of its loops is broken, though it answers.
    """
    token = _failures.set(names)
    try:
        yield
    finally:
        _failures.reset(token)


@asynccontextmanager
async def background(*loops: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run the loops beside the block, and end them with it.

    A loop that fails is a bug, which is logged and noted at once.
    """
    tasks = [asyncio.create_task(loop) for loop in loops]
    for task, loop in zip(tasks, loops, strict=True):
        task.add_done_callback(
            partial(_report, getattr(loop, "__qualname__", "a loop"), _failures.get())
        )
    try:
        yield
    finally:
        # More than once, since a library may lose a cancellation.
        while running := [task for task in tasks if not task.done()]:
            for task in running:
                task.cancel()
            await asyncio.wait(running, timeout=_CANCEL_AGAIN_S)


def _report(name: str, failures: list[str] | None, task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        if failures is not None:
            failures.append(name)
        log.error(
            "the loop %s beside the requests has ended, restart the API",
            name,
            exc_info=error,
            extra=event("loop.ended", loop=name),
        )
