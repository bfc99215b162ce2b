"""How many chains take the next step: the batch sizes that may be used, what a step of each costs, and the choice among them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache

from worker.jobs.policy import STRETCH


class BatchSizes:
    """`seconds` of a step by batch size, padding included."""

    def __init__(self, seconds: Mapping[int, float]) -> None:
        self.seconds = dict(sorted(seconds.items()))
        self.sizes = tuple(self.seconds)
        # asked before every step, behind a network that has filled the caches
        self.holding, self.places = cache(self._holding), lru_cache(4096)(self._places)

    @property
    def largest(self) -> int:
        return self.sizes[-1]

    def _holding(self, chains: int) -> int:
        """The size in which that many chains step soonest; the largest there is for more."""
        fit = [size for size in self.sizes if size >= chains] or [self.largest]
        return min(fit, key=lambda size: self.seconds[size])

    def _places(self, interactive: int, bulk: int, within_s: float = math.inf) -> int:
        """How many of the waiting chains are to take the next step, which is to take `within_s` where a batch does.

        The largest batch of those that would give every one of them a step in the shortest time: 20 chains as 16 and 4 where
        that is faster than 32 places with 12 left empty. While somebody interactive waits, only batches that do not hold it up.
        """
        waiting = interactive + bulk
        allowed = self._swift(interactive) if interactive and bulk else self.sizes
        allowed = [size for size in allowed if self.seconds[size] <= within_s] or [self.holding(1)]
        if waiting > 2 * allowed[-1]:
            return max(allowed, key=lambda size: size / self.seconds[size])
        size = _first_of_rounds(waiting, tuple((size, self.seconds[size]) for size in allowed))
        return min(size, waiting)

    def _swift(self, interactive: int) -> Sequence[int]:
        limit_s = max(
            STRETCH * self.seconds[self.holding(1)], self.seconds[self.holding(interactive)]
        )
        return [size for size in self.sizes if self.seconds[size] <= limit_s]


def _first_of_rounds(chains: int, costs: tuple[tuple[int, float], ...]) -> int:
    """The largest batch of the cheapest set of batches that holds all chains."""
    cheapest: list[tuple[float, int]] = [
        (0.0, 0)
    ]  # for each number of chains: seconds, and the largest batch
    for n in range(1, chains + 1):
        rest = ((cheapest[max(0, n - size)], size, seconds) for size, seconds in costs)
        cheapest.append(
            min((spent + seconds, max(size, largest)) for (spent, largest), size, seconds in rest)
        )
    return cheapest[chains][1]
