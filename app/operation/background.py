"""Loops that run beside the requests, for as long as the process serves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from worker.logs import event

log = logging.getLogger(__name__)
_CANCEL_AGAIN_S = 0.5


@asynccontextmanager
async def background(*loops: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run the loops beside the block, and end them with it.

    A loop that fails is a bug, which is logged at once.
    """
    tasks = [asyncio.create_task(loop) for loop in loops]
    for task in tasks:
        task.add_done_callback(_report)
    try:
        yield
    finally:
        # More than once, since a library may lose a cancellation.
        while running := [task for task in tasks if not task.done()]:
            for task in running:
                task.cancel()
            await asyncio.wait(running, timeout=_CANCEL_AGAIN_S)


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        log.error(
            "a loop beside the requests has ended, restart the API",
            exc_info=error,
            extra=event("loop.ended"),
        )
