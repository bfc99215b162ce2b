"""The number of CPU threads that compute a step, adapted from one step to the next.

Threads meet after every layer. If another process has one of the cores, all threads wait for the
one without a core. Fewer threads would then be faster: several times so, in small batches. The bits
are the same.
"""

from __future__ import annotations

# seconds of steps to judge by
_STRETCH_S = 0.25
# Fewer threads are tried after two stretches in a row that took longer by this factor.
_SLOWED = 1.3
# The number that is tried is used if it needs less than this part of the time.
_GAIN = 0.9
# seconds of steps from one trial to the next, doubled after each trial in vain
_REST_S = 1.0
_LONGEST_REST_S = 60.0


class AdaptiveThreads:
    """Chooses `most` threads while they keep what calibration promises.

    Otherwise it chooses the better of `most` and `fewer`, which it finds out by trying now and
    then.

    Attributes:
        count: The threads to compute the next step by.
    """

    def __init__(self, most: int, fewer: int) -> None:
        """Begin with `most`."""
        self.count = most
        self._most = most
        self._other = fewer
        # what a promised second took before, while the other number is tried
        self._to_beat: float | None = None
        self._rest_s = _REST_S
        self._rested_s = _REST_S
        self._took_s = 0.0
        self._promised_s = 0.0
        self._was_slow = False

    def note(self, took_s: float, promised_s: float) -> None:
        """Add a step by `count` threads, and choose the number for the next one.

        Args:
            took_s: What the step took.
            promised_s: What it takes by the number of threads that calibration chose.
        """
        self._took_s += took_s
        self._promised_s += promised_s
        if self._took_s < _STRETCH_S or self.count == self._other:
            return
        slowed = self._took_s / self._promised_s
        took_s = self._took_s
        self._took_s = 0.0
        self._promised_s = 0.0
        if self._to_beat is not None:
            self._judge(slowed, self._to_beat)
            return
        self._rested_s += took_s
        was_slow = self._was_slow
        self._was_slow = slowed > _SLOWED
        in_doubt = (was_slow and self._was_slow) or self.count < self._most
        if in_doubt and self._rested_s >= self._rest_s:
            self._to_beat = slowed
            self._swap()

    def _judge(self, slowed: float, before: float) -> None:
        self._to_beat = None
        self._rested_s = 0.0
        if slowed < _GAIN * before:
            self._rest_s = _REST_S
        else:
            self._rest_s = min(2 * self._rest_s, _LONGEST_REST_S)
            self._swap()

    def _swap(self) -> None:
        self.count, self._other = self._other, self.count
