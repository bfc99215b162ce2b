"""How fast this worker is now: what calibration found, and how much longer steps have taken since.

A rate of images alone would say of a worker that it is slow while it has little to do.
"""

from __future__ import annotations

_MEASURED_S, _REMEMBERED_S = 2.0, 10.0


class Slowdown:
    """Short stretches of work add up, and what is longer ago than ten seconds of work counts less and less."""

    def __init__(self) -> None:
        self._took_s = self._promised_s = 0.0

    def note(self, took_s: float, promised_s: float) -> None:
        """Of one turn in which something stepped, or was waited for."""
        self._took_s += took_s
        self._promised_s += promised_s
        if self._took_s >= _REMEMBERED_S:
            self._took_s, self._promised_s = self._took_s / 2, self._promised_s / 2

    @property
    def slowed(self) -> float:
        """Seconds that steps take, of one that calibration promises; 1 until two seconds of them are measured."""
        return (
            self._took_s / self._promised_s
            if self._took_s >= _MEASURED_S and self._promised_s
            else 1.0
        )
