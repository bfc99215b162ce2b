"""Turns between owners, for work that takes long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary


class Turns:
    """Lets some tasks work at a time, and one of each owner.

    An owner who asks for much waits behind its own tasks, and leaves room for the others.
    """

    def __init__(self, at_once: int) -> None:
        self._working = asyncio.Semaphore(at_once)
        # By owner, while a task of the owner works or waits.
        self._of: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def turn(self, owner: str) -> AsyncIterator[None]:
        """Wait for the owner's turn, and hold it while the block runs."""
        own = self._of.setdefault(owner, asyncio.Lock())
        async with own, self._working:
            yield
