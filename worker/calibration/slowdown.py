"""The worker's present speed: how much longer steps take than when they were calibrated.

A rate of images alone would call a worker slow while it has little to do.
"""

from __future__ import annotations

# seconds of steps before there is a judgement
_MEASURED_S = 2.0
# seconds of steps that are remembered in full
_REMEMBERED_S = 10.0


class Slowdown:
    """Seconds that steps took, over the seconds that calibration promised for them.

    Short stretches of work add up. Work that is longer ago than ten seconds of work counts less and
    less.
    """

    def __init__(self) -> None:
        self._took_s = 0.0
        self._promised_s = 0.0

    def note(self, took_s: float, promised_s: float) -> None:
        """Add a round in which something stepped, or was waited for."""
        self._took_s += took_s
        self._promised_s += promised_s
        if self._took_s >= _REMEMBERED_S:
            self._took_s /= 2
            self._promised_s /= 2

    @property
    def slowed(self) -> float:
        """Seconds that a promised second takes; 1 until two seconds of steps are measured."""
        if self._took_s < _MEASURED_S or not self._promised_s:
            return 1.0
        return self._took_s / self._promised_s
