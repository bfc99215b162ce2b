"""How many threads of a CPU compute a step, from one step to the next.

Threads meet after every layer. Where another process has one of the cores, all of them wait for the one that is without, and
fewer would be faster: several times so, in small batches. The bits are the same.
"""

from __future__ import annotations

_STRETCH_S = 0.25  # of steps, to judge by
_SLOWED = 1.3  # two stretches in a row by `most` that take longer than calibration promises, by this factor, are worth a trial
_GAIN = 0.9  # of the time of the present number; the other is taken where it needs less
_REST_S, _LONGEST_REST_S = (
    1.0,
    60.0,
)  # of steps, from one trial to the next; after each in vain twice as long


class AdaptiveThreads:
    """`most` while they keep what calibration promises; else the better of `most` and `fewer`, found by trying now and then."""

    def __init__(self, most: int, fewer: int) -> None:
        self.count = self._most = most
        self._other = fewer
        self._to_beat: float | None = (
            None  # while the other number is tried: what a promised second took before
        )
        self._rest_s, self._rested_s = _REST_S, _REST_S
        self._took_s = self._promised_s = 0.0
        self._was_slow = False

    def note(self, took_s: float, promised_s: float) -> None:
        """Of one step, by `count` threads; `promised_s` is by the number that calibration chose."""
        self._took_s += took_s
        self._promised_s += promised_s
        if self._took_s < _STRETCH_S or self.count == self._other:
            return
        slowed, took_s = self._took_s / self._promised_s, self._took_s
        self._took_s = self._promised_s = 0.0
        if self._to_beat is not None:
            self._judge(slowed, self._to_beat)
            return
        self._rested_s += took_s
        was_slow, self._was_slow = self._was_slow, slowed > _SLOWED
        if (
            (was_slow and self._was_slow) or self.count < self._most
        ) and self._rested_s >= self._rest_s:
            self._to_beat = slowed
            self._swap()

    def _judge(self, slowed: float, before: float) -> None:
        self._to_beat, self._rested_s = None, 0.0
        if slowed < _GAIN * before:
            self._rest_s = _REST_S
        else:
            self._rest_s = min(2 * self._rest_s, _LONGEST_REST_S)
            self._swap()

    def _swap(self) -> None:
        self.count, self._other = self._other, self.count
