"""How fast a key may ask."""

from __future__ import annotations

from dataclasses import dataclass

_BURST_S = 2.0  # what was not asked for is saved up this long


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at: float


class RateLimit:
    """A bucket of tokens for each key: one request takes one, `per_s` are added a second. 0: no limit.

    Each API process keeps its own, as it is the process that a limit is to protect: with N of them a key has N times as much,
    and no request asks Redis once more.
    """

    def __init__(self, per_s: float) -> None:
        self.per_s = per_s
        self._burst = max(1.0, per_s * _BURST_S)
        self._buckets: dict[
            str, _Bucket
        ] = {}  # of keys that are known, so that strangers do not fill it

    def wait_s(self, name: str, now: float) -> float:
        """0 where the request may go on, and has taken its token; else the seconds until there is one."""
        if not self.per_s:
            return 0.0
        bucket = self._buckets.setdefault(name, _Bucket(self._burst, now))
        bucket.tokens = min(self._burst, bucket.tokens + (now - bucket.filled_at) * self.per_s)
        bucket.filled_at = now
        if bucket.tokens < 1:
            return (1 - bucket.tokens) / self.per_s
        bucket.tokens -= 1
        return 0.0
