"""A clock for code that measures time, so that no test depends on how busy the machine is."""

from __future__ import annotations


class SimulatedClock:
    """Called, it returns the seconds that have passed, then lets `tick_s` pass."""

    def __init__(self, tick_s: float = 0.0) -> None:
        self.tick_s = tick_s
        self.now_s = 0.0

    def __call__(self) -> float:
        now_s = self.now_s
        self.pass_s(self.tick_s)
        return now_s

    def pass_s(self, seconds: float) -> None:
        self.now_s += seconds
