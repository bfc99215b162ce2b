"""Logs why requests meet errors of the job store: once an outage, and not once a request."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from redis.exceptions import RedisError

from app.problems.problems import Problem
from worker.logs import event

log = logging.getLogger(__name__)
# An outage is over when nobody has met it for so long.
_OVER_AFTER_S = 10.0


class StoreErrorLog:
    """Writes one line for each kind of error, and another one if it comes back later."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # By the problem's name: when a request met it last.
        self._met_at: dict[str, float] = {}

    def note(self, error: RedisError, problem: Problem) -> None:
        """Log the error unless it is one of an outage that the log has."""
        now = self._clock()
        key = f"{problem.name} {problem.detail}"
        is_new = now - self._met_at.get(key, float("-inf")) > _OVER_AFTER_S
        self._met_at[key] = now
        if is_new:
            log.warning(
                "requests are answered with %d %s: %s (%s)",
                problem.status,
                problem.name,
                problem.detail,
                error,
                extra=event("redis.failed", problem=problem.name, status=int(problem.status)),
            )
