"""The batch sizes in use, what a step of each costs, and how many chains take the next step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache

from worker.jobs.policy import STRETCH


class BatchSizes:
    """The batch sizes that steps may use.

    Attributes:
        seconds: What a step of each size takes, padding included, by ascending size.
        sizes: The sizes, ascending.
        size_for: `_size_for`, with its answers remembered.
        places: `_places`, with its answers remembered.
    """

    def __init__(self, seconds: Mapping[int, float]) -> None:
        """Take the seconds of a step by batch size."""
        self.seconds = dict(sorted(seconds.items()))
        self.sizes = tuple(self.seconds)
        # The engine asks before every step, when the network has just filled the CPU's caches.
        self.size_for = cache(self._size_for)
        self.places = lru_cache(4096)(self._places)

    @property
    def largest(self) -> int:
        """The largest size in use."""
        return self.sizes[-1]

    def _size_for(self, chains: int) -> int:
        """Choose the size that steps so many chains soonest: the largest, if none holds them."""
        fit = [size for size in self.sizes if size >= chains] or [self.largest]
        return min(fit, key=lambda size: self.seconds[size])

    def _places(self, interactive: int, bulk: int, within_s: float = math.inf) -> int:
        """Choose how many of the waiting chains take the next step.

        It is the largest batch of the set that would step every waiting chain once in the
        shortest time. So 20 chains go as 16 and 4 if that is faster than a batch of 32 with 12
        places empty. While interactive chains wait, only batches that do not delay them count.

        Args:
            interactive: Interactive chains that wait.
            bulk: Bulk chains that wait.
            within_s: Upper bound on the step's duration, in seconds. If every batch takes longer,
                the size for one chain is used.
        """
        waiting = interactive + bulk
        allowed = self._swift(interactive) if interactive and bulk else self.sizes
        allowed = [size for size in allowed if self.seconds[size] <= within_s]
        allowed = allowed or [self.size_for(1)]
        if waiting > 2 * allowed[-1]:
            return max(allowed, key=lambda size: size / self.seconds[size])
        rounds = _rounds(tuple((size, self.seconds[size]) for size in allowed))
        size = rounds.first(waiting)
        return min(size, waiting)

    def _swift(self, interactive: int) -> Sequence[int]:
        """List the sizes that hardly delay so many interactive chains."""
        stretched_s = STRETCH * self.seconds[self.size_for(1)]
        limit_s = max(stretched_s, self.seconds[self.size_for(interactive)])
        return [size for size in self.sizes if self.seconds[size] <= limit_s]


class _Rounds:
    """The cheapest sets of batches that hold so many chains, found once for each number."""

    def __init__(self, costs: tuple[tuple[int, float], ...]) -> None:
        """Take the batch sizes that may be used, and the seconds of a step of each."""
        self._costs = costs
        # for each number of chains: the seconds, and the largest batch
        self._cheapest: list[tuple[float, int]] = [(0.0, 0)]

    def first(self, chains: int) -> int:
        """Find the largest batch of the cheapest set of batches that holds all chains."""
        cheapest = self._cheapest
        for n in range(len(cheapest), chains + 1):
            rest = ((cheapest[max(0, n - size)], size, seconds) for size, seconds in self._costs)
            cheapest.append(
                min((spent + seconds, max(size, most)) for (spent, most), size, seconds in rest)
            )
        return cheapest[chains][1]


_rounds = lru_cache(64)(_Rounds)
