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
from typing import Any
from uuid import uuid4

import httpx

_AT_ONCE = 8
_PAUSE_S = 0.3
_TRY_AGAIN = {429, 503, 507}


@dataclass(frozen=True, slots=True)
class ClientOutcome:
    """The outcome of a POST: the job as it ended, and its PNGs by index."""

    job: dict[str, Any]
    pngs: dict[int, bytes]


class Clients:
    """Several clients at once, each with one job after another.

    Attributes:
        urls: Base URLs of the APIs; each request goes to any.
        setbacks: What they met instead of an answer, and how often.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self.urls = urls
        self._http = httpx.Client(timeout=10)
        self._threads = ThreadPoolExecutor(_AT_ONCE)
        self._closed = False
        self.setbacks: Counter[str] = Counter()

    def draw(self, bodies: Sequence[dict[str, Any]]) -> list[Future[ClientOutcome]]:
        """Post jobs, and return the futures of their outcomes."""
        return [self._threads.submit(self._draw, body) for body in bodies]

    def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request until there is an answer.

        Raises:
            httpx.HTTPStatusError: The answer is an error that asking again does not mend.
            RuntimeError: The clients were closed.
        """
        while not self._closed:
            try:
                response = self._http.request(method, random.choice(self.urls) + path, **options)
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

    def _draw(self, body: dict[str, Any]) -> ClientOutcome:
        headers = {"Idempotency-Key": uuid4().hex}
        job = self.call("POST", "/v1/jobs", json=body, headers=headers).json()
        while job["state"] in ("queued", "running"):
            job = self.call("GET", job["links"]["self"], params={"wait": 5}).json()
        finished = [image for image in job["images"] if image["state"] == "finished"]
        return ClientOutcome(job, {image["index"]: self._png(image) for image in finished})

    def _png(self, image: dict[str, Any]) -> bytes:
        png = self.call("GET", image["url"]).content
        assert hashlib.sha256(png).hexdigest() == image["sha256"], image
        return png

    def _pause(self, reason: str, seconds: float) -> None:
        self.setbacks[reason] += 1
        time.sleep(seconds)
