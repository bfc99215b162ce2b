"""Clients as they should be.

They ask again after a 503 or a lost connection, and name a POST so that it counts once.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from typing import Any
from uuid import uuid4

import httpx

CLIENTS_AT_ONCE = 8
_PAUSE_S = 0.3
_TRY_AGAIN = {429, 503, 507}


@dataclass(frozen=True, slots=True)
class ClientOutcome:
    """The outcome of a POST: the job as it ended, its PNGs by index, and whose it is."""

    job: dict[str, Any]
    pngs: dict[int, bytes]
    owner: str = ""


class Clients:
    """Several clients at once, each with one job after another.

    Attributes:
        urls: Base URLs of the APIs; each request goes to any.
        owners: The API keys that jobs are posted with, in turn; none if there are no keys.
        setbacks: What they met instead of an answer, and how often.
    """

    def __init__(
        self, urls: Sequence[str], owners: Sequence[str] = (), at_once: int = CLIENTS_AT_ONCE
    ) -> None:
        self.urls = urls
        self.owners = owners or ("",)
        limits = httpx.Limits(max_connections=None)
        self._http = httpx.Client(timeout=10, limits=limits)
        self._threads = ThreadPoolExecutor(at_once)
        self._closed = False
        self.setbacks: Counter[str] = Counter()

    def draw(self, bodies: Sequence[dict[str, Any]]) -> list[Future[ClientOutcome]]:
        """Post jobs, and return the futures of their outcomes."""
        owners = cycle(self.owners)
        return [self._threads.submit(self._draw, body, next(owners)) for body in bodies]

    def call(
        self,
        method: str,
        path: str,
        owner: str = "",
        headers: dict[str, str] | None = None,
        **options: Any,
    ) -> httpx.Response:
        """Send a request of an owner until there is an answer.

        Raises:
            httpx.HTTPStatusError: The answer is an error that asking again does not mend.
            RuntimeError: The clients were closed.
        """
        headers = {**(headers or {}), **({"Authorization": f"Bearer {owner}"} if owner else {})}
        while not self._closed:
            url = random.choice(self.urls) + path
            try:
                response = self._http.request(method, url, headers=headers, **options)
            except httpx.TransportError as error:
                self._pause(type(error).__name__, _PAUSE_S)
                continue
            if response.status_code not in _TRY_AGAIN:
                return response.raise_for_status()
            pause_s = float(response.headers.get("retry-after", _PAUSE_S))
            self._pause(str(response.status_code), pause_s)
        raise RuntimeError("the storm was given up")

    def close(self) -> None:
        """Give up all requests."""
        self._closed = True
        self._threads.shutdown(cancel_futures=True)
        self._http.close()

    def _draw(self, body: dict[str, Any], owner: str) -> ClientOutcome:
        headers = {"Idempotency-Key": uuid4().hex}
        job = self.call("POST", "/v1/jobs", owner, headers, json=body).json()
        while job["state"] in ("queued", "running"):
            job = self.call("GET", job["links"]["self"], owner, params={"wait": 5}).json()
        finished = [image for image in job["images"] if image["state"] == "finished"]
        pngs = {image["index"]: self._png(image, owner) for image in finished}
        return ClientOutcome(job, pngs, owner)

    def _png(self, image: dict[str, Any], owner: str) -> bytes:
        png = self.call("GET", image["url"], owner).content
        assert hashlib.sha256(png).hexdigest() == image["sha256"], image
        return png

    def _pause(self, reason: str, seconds: float) -> None:
        self.setbacks[reason] += 1
        time.sleep(seconds)
