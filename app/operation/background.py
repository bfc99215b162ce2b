"""What an API process does beside answering: loops that run for as long as the process serves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

log = logging.getLogger(__name__)
_ASK_AGAIN_S = 0.5


@asynccontextmanager
async def background(*loops: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run the loops beside the block, and end them with it. One that fails is a bug: the log says so at once."""
    tasks = [asyncio.create_task(loop) for loop in loops]
    for task in tasks:
        task.add_done_callback(_report)
    try:
        yield
    finally:
        while running := [
            task for task in tasks if not task.done()
        ]:  # a library may lose a cancellation
            for task in running:
                task.cancel()
            await asyncio.wait(running, timeout=_ASK_AGAIN_S)


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        log.error("a loop beside the requests has ended, restart the API", exc_info=error)
