"""Whether what was posted is on the server's disk. Servers that cannot say so are believed, and the log says it once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import RedisError, ResponseError

log = logging.getLogger(__name__)
WAIT_S = 1.2  # `appendfsync everysec` takes a second, and a 503 is to go out within 2 s
_WARNING = (
    "accepted jobs are not known to be on disk: %s; a crash of the job store may lose the newest"
)


class DurabilityCheck:
    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._asks = True
        self._warned = False

    def ask(self, pipe: Pipeline) -> None:
        """Buffer the question, behind the writes that it is about."""
        if self._asks:
            pipe.execute_command("WAITAOF", 1, 0, round(WAIT_S * 1000))

    async def has(self, answers: Sequence[Any]) -> bool:
        """From the answers to what `ask` buffered."""
        for answer in answers:
            if isinstance(
                answer, ResponseError
            ):  # no append-only file, no such command, or not for this user
                self._believe(
                    f"WAITAOF says {str(answer)!r}",
                    for_good=str(answer).startswith("unknown command"),
                )
            elif not answer[0]:
                return await self._never_syncs()
        return True

    async def _never_syncs(self) -> bool:
        """Under `appendfsync no` the question is never answered: whoever set that does not want to wait."""
        try:
            setting = await self._redis.config_get("appendfsync")
        except RedisError:  # not for this user, or no answer
            return False
        if setting.get("appendfsync") != "no":
            return False
        self._believe("appendfsync is no", for_good=True)
        return True

    def _believe(self, reason: str, for_good: bool) -> None:
        if not self._warned:
            log.warning(_WARNING, reason)
        self._warned = True
        self._asks = self._asks and not for_good
