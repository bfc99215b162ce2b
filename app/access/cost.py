"""What requests cost a key, counted in plain requests.

A plain request, such as that for a job's status, takes about a millisecond of the API's processor.
The others count as what they take of it, as measured (docs/decisions/0047).
"""

from __future__ import annotations

import time
from collections.abc import Callable, MutableMapping
from typing import Any

from starlette.types import Message, Send

from app.access.rate_limit import Allowance, RateLimit
from app.problems.problems import TooManyRequests

# Each of these counts as one request.
RECORDS = 4
IMAGES_ON_A_SHEET = 6
IMAGES_IN_AN_ARCHIVE = 24
IMAGES_IN_EVENTS = 40
LINKS = 64
BYTES = 2**20

_PRICES = (
    f"A listing counts as one for every {RECORDS} jobs, a contact sheet for every "
    f"{IMAGES_ON_A_SHEET} images, an archive for every {IMAGES_IN_AN_ARCHIVE}, events for every "
    f"{IMAGES_IN_EVENTS} that are finished, signed links for every {LINKS}, and a large answer for "
    "every MiB."
)


class CostMeter:
    """What one request costs its key. Without a limit, nothing."""

    def __init__(
        self,
        limit: RateLimit,
        name: str,
        per_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the key that pays.

        Args:
            limit: What all keys have left.
            name: The key's name.
            per_s: Requests a second that it may send; 0 means no limit.
            clock: Seconds, by a clock that all processes of the host have.
        """
        self.per_s = per_s
        self._limit = limit
        self._name = name
        self._paid = 0.0
        self._clock = clock

    def spend(self, cost: float = 1.0) -> None:
        """Take `cost` requests from what the key has left.

        A key that owes nothing but this request may spend however much it is, and owes the rest.

        Raises:
            TooManyRequests: the key has sent more, or dearer, requests than it may.
        """
        wait_s = self._limit.wait_s(self._name, self._clock(), self.per_s, cost, self._paid)
        if wait_s:
            raise TooManyRequests(self.per_s, wait_s, _PRICES)
        self._paid += cost

    def owe(self, cost: float) -> None:
        """Take `cost` requests, for work that is done already."""
        self._limit.owe(self._name, self._clock(), cost, self.per_s)

    @property
    def allowance(self) -> Allowance:
        """What the key has left now; only for a key that has a limit."""
        return self._limit.allowance(self._name, self._clock(), self.per_s)

    def metered(self, send: Send) -> Send:
        """Return `send` with the key's limit in the headers, and with the body counted.

        The headers are those of draft-ietf-httpapi-ratelimit-headers-10.
        """
        if not self.per_s:
            return send
        sent = 0

        async def metered(message: Message) -> None:
            nonlocal sent
            if message["type"] == "http.response.start":
                self._add_headers(message)
            sent += len(message.get("body", b""))
            if sent >= BYTES:
                self.owe(sent / BYTES)
                sent = 0
            await send(message)

        return metered

    def _add_headers(self, message: MutableMapping[str, Any]) -> None:
        now = self.allowance
        policy = f'"requests";q={now.most};w={now.within_s}'
        rest = f'"requests";r={now.left};t={now.full_in_s}'
        message["headers"] = [
            *message.get("headers", ()),
            (b"ratelimit-policy", policy.encode()),
            (b"ratelimit", rest.encode()),
        ]
