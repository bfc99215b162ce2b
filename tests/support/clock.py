"""A clock that goes on only when a test says so."""

from __future__ import annotations


class Clock:
    """Gives the time in seconds when it is called, from an arbitrary beginning."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass."""
        self.now += seconds
