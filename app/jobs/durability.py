"""Checks that what was posted is on the job store's disk.

A server that cannot say so is trusted, and the log says that once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import RedisError, ResponseError

from worker.logs import event

log = logging.getLogger(__name__)

# `appendfsync everysec` takes up to a second, and a 503 has to go out within 2 s.
WAIT_S = 1.2
_WARNING = (
    "accepted jobs are not known to be on disk: %s; a crash of the job store may lose the newest"
)


class DurabilityCheck:
    """Asks the server to confirm that the writes of a pipeline are on its disk."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._enabled = True
        self._warned = False

    def request(self, pipe: Pipeline) -> None:
        """Buffer the question; the writes that it is about must be buffered already."""
        if self._enabled:
            pipe.execute_command("WAITAOF", 1, 0, round(WAIT_S * 1000))

    async def confirmed(self, answers: Sequence[Any]) -> bool:
        """Return whether the writes are on disk, from the answers to what `request` buffered.

        True also where the server cannot say.
        """
        for answer in answers:
            if isinstance(answer, ResponseError):
                # No append-only file, no such command, or not for this user.
                reason = f"WAITAOF says {str(answer)!r}"
                self._trust(reason, for_good=str(answer).startswith("unknown command"))
            elif not answer[0]:
                return await self._never_syncs()
        return True

    async def _never_syncs(self) -> bool:
        """Return whether the server runs under `appendfsync no`.

        It then never confirms a write, and whoever chose that setting does not want to wait.
        """
        try:
            setting = await self._redis.config_get("appendfsync")
        except RedisError:
            # Not for this user, or no answer.
            return False
        if setting.get("appendfsync") != "no":
            return False
        self._trust("appendfsync is no", for_good=True)
        return True

    def _trust(self, reason: str, for_good: bool) -> None:
        """Warn once. With `for_good`, later requests are not confirmed at all."""
        if not self._warned:
            log.warning(_WARNING, reason, extra=event("redis.not_durable"))
        self._warned = True
        self._enabled = self._enabled and not for_good
