"""Limits how many requests a second a key may send."""

from __future__ import annotations

from dataclasses import dataclass

# Seconds for which requests that were not sent are saved up.
_BURST_S = 2.0


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at: float


class RateLimit:
    """Holds a bucket of tokens for each key: a request takes one, and `per_s` are added a second.

    Each API process has buckets of its own, because a limit protects the process. With N processes
    a key gets N times as much, and no request costs another round trip to Redis.
    """

    def __init__(self, per_s: float) -> None:
        """Take the requests that a key may send in a second; 0 means no limit."""
        self.per_s = per_s
        self._burst = max(1.0, per_s * _BURST_S)
        # By the name of a known key, so that strangers cannot fill it.
        self._buckets: dict[str, _Bucket] = {}

    def wait_s(self, name: str, now: float) -> float:
        """Take a token for a request, or say when there will be one.

        Args:
            name: Name of the key.
            now: Seconds, by a clock that never goes back.

        Returns:
            0 if the request has its token, else the seconds until it could have one.
        """
        if not self.per_s:
            return 0.0
        bucket = self._buckets.setdefault(name, _Bucket(self._burst, now))
        bucket.tokens = min(self._burst, bucket.tokens + (now - bucket.filled_at) * self.per_s)
        bucket.filled_at = now
        if bucket.tokens < 1:
            return (1 - bucket.tokens) / self.per_s
        bucket.tokens -= 1
        return 0.0
