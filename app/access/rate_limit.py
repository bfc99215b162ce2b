"""Limits how many requests a second a key may send."""

from __future__ import annotations

import fcntl
import math
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256

# Seconds for which requests that were not sent are saved up.
_BURST_S = 2.0
# Clocks have no smaller steps than that.
_TOLERANCE_S = 1e-6
# Requests that a key may owe, after dear ones.
_MOST_OWED = 10_000
# Names that are told apart; beyond them, some share a place.
_PLACES = 2**14
_BYTES = 8
# Of the file that several processes share: a tag and a time for each place.
FILE_BYTES = 2 * _PLACES * _BYTES


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a key may send.

    Attributes:
        most: Requests that it may send at once after a pause.
        within_s: Seconds of a pause after which it may.
        left: Requests that it may send now.
        full_in_s: Seconds until it may send `most` again.
    """

    most: int
    within_s: int
    left: int
    full_in_s: int


class RateLimit:
    """Lets each key send a burst of requests, and from then on `per_s` of them a second.

    A request may count as several: a key that has sent a dear one waits the longer for the next.

    It is the generic cell rate algorithm (ITU-T I.371): all that is known of a key is the time at
    which its next request would be due if it sent them evenly. All API processes of a host share
    these times, in memory, so that no request costs a round trip to Redis. Hosts do not share them.

    A name's place is found by its hash, because names come and go while the service runs.
    """

    def __init__(self, per_s: float, shared_fd: int | None = None) -> None:
        """Take the rate of keys that have none of their own.

        Args:
            per_s: Requests that a key may send in a second; 0 means no limit.
            shared_fd: A file that all processes have open, of `FILE_BYTES`. None for one process.
        """
        self.per_s = per_s
        self._shared_fd = shared_fd
        memory = mmap.mmap(-1 if shared_fd is None else shared_fd, FILE_BYTES)
        half = FILE_BYTES // 2
        self._tags = memoryview(memory)[:half].cast("Q")
        self._due_at = memoryview(memory)[half:].cast("d")
        self._place_of: dict[str, int] = {}

    def wait_s(
        self,
        name: str,
        now: float,
        per_s: float | None = None,
        cost: float = 1.0,
        paid: float = 0.0,
    ) -> float:
        """Let a request pass, or say when it could.

        Args:
            name: Name of a known key, so that strangers cannot fill the table.
            now: Seconds, by a clock that never goes back and that all processes have.
            per_s: The key's own limit; None for that of all.
            cost: Requests that it counts as.
            paid: Those that it was counted as before, where its cost shows bit by bit.

        Returns:
            0 if the request may pass, else the seconds until it could.
        """
        per_s = self.per_s if per_s is None else per_s
        if not per_s:
            return 0.0
        with self._locked_place(name) as place:
            due_at = max(self._due_at[place], now)
            wait_s = due_at - _early_s(per_s) - paid / per_s - now
            if wait_s > _TOLERANCE_S:
                return min(wait_s, _MOST_OWED / per_s)
            self._due_at[place] = _later(due_at, now, cost, per_s)
            return 0.0

    def owe(self, name: str, now: float, cost: float, per_s: float) -> None:
        """Count a request that has passed as `cost` requests more; `wait_s` has the others."""
        if not per_s:
            return
        with self._locked_place(name) as place:
            self._due_at[place] = _later(max(self._due_at[place], now), now, cost, per_s)

    def allowance(self, name: str, now: float, per_s: float) -> Allowance:
        """Return what a key may send whose limit `per_s` is above 0."""
        with self._locked_place(name) as place:
            due_s = max(0.0, self._due_at[place] - now)
        early_s = _early_s(per_s)
        return Allowance(
            most=math.floor(early_s * per_s + _TOLERANCE_S) + 1,
            within_s=math.ceil(max(_BURST_S, 1 / per_s)),
            left=max(0, math.floor((early_s - due_s) * per_s + _TOLERANCE_S) + 1),
            full_in_s=math.ceil(due_s),
        )

    @contextmanager
    def _locked_place(self, name: str) -> Iterator[int]:
        """Give the place of a name, which nobody else changes meanwhile."""
        place = self._place_of.get(name)
        if place is None:
            place = self._place_of[name] = self._place(name)
        with self._locked(place * _BYTES, _BYTES):
            yield place

    def _place(self, name: str) -> int:
        """Find the place of a name, or give it one."""
        tag = int.from_bytes(sha256(name.encode()).digest()[:_BYTES], "big") | 1
        first = tag // 2 % _PLACES
        with self._locked(0, FILE_BYTES):
            for step in range(_PLACES):
                place = (first + step) % _PLACES
                if self._tags[place] in (0, tag):
                    self._tags[place] = tag
                    return place
        return first

    @contextmanager
    def _locked(self, offset: int, size: int) -> Iterator[None]:
        """Keep the other processes away from some bytes. The kernel unlocks for a killed one."""
        if self._shared_fd is None:
            yield
            return
        fcntl.lockf(self._shared_fd, fcntl.LOCK_EX, size, offset)
        try:
            yield
        finally:
            fcntl.lockf(self._shared_fd, fcntl.LOCK_UN, size, offset)


def _early_s(per_s: float) -> float:
    """Return how early a request may come. A lone one is let in, however low the rate."""
    return max(0.0, _BURST_S - 1 / per_s)


def _later(due_at: float, now: float, cost: float, per_s: float) -> float:
    """Return when the next request is due after one that costs so much."""
    return min(due_at + cost / per_s, now + _early_s(per_s) + _MOST_OWED / per_s)
