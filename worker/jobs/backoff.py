"""How long to wait before the next attempt at something that failed."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses that grow from `first_s` by `factor` until they are `longest_s`, all in seconds.

    `jitter` is the part of a pause by which it is longer or shorter, at random: 0.2 for a fifth.
    """

    first_s: float
    longest_s: float
    factor: float = 2.0
    jitter: float = 0.0

    def pause_s(self, failures: int) -> float:
        """Return the pause after so many failures in a row, from 1."""
        pause_s = self.first_s
        for _ in range(failures - 1):
            if pause_s >= self.longest_s:
                break
            pause_s = self.longer_s(pause_s)
        return pause_s * random.uniform(1 - self.jitter, 1 + self.jitter)

    def longer_s(self, pause_s: float) -> float:
        """Return the pause after one of `pause_s`, without jitter."""
        return min(self.factor * pause_s, self.longest_s)

    def pauses(self) -> Pauses:
        """Begin to count failures."""
        return Pauses(self)


class Pauses:
    """The pauses of one caller, who says when an attempt has failed and when all is well."""

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self._failures = 0

    def next_s(self) -> float:
        """Count a failure, and return the pause in seconds before the next attempt."""
        self._failures += 1
        return self._backoff.pause_s(self._failures)

    def reset(self) -> None:
        """Begin again with the first pause."""
        self._failures = 0
