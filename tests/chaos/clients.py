"""Clients as they ought to be: they ask again after a 503 or a lost connection, and name a POST so that it counts once."""

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
class Outcome:
    """What a client got for one POST: the job as it ended, and its PNGs by index."""

    job: dict[str, Any]
    pngs: dict[int, bytes]


class Clients:
    """Some of them at work at once, each with one job after another."""

    def __init__(self, urls: Sequence[str]) -> None:
        self.urls = urls
        self._http = httpx.Client(timeout=10)
        self._threads = ThreadPoolExecutor(_AT_ONCE)
        self._closed = False
        self.setbacks: Counter[str] = Counter()  # what they met instead of an answer

    def draw(self, bodies: Sequence[dict[str, Any]]) -> list[Future[Outcome]]:
        return [self._threads.submit(self._draw, body) for body in bodies]

    def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Until there is an answer. Raises httpx.HTTPStatusError for one that asking again does not mend."""
        while not self._closed:
            try:
                response = self._http.request(method, random.choice(self.urls) + path, **options)
            except httpx.TransportError as error:
                self._pause(type(error).__name__, _PAUSE_S)
                continue
            if response.status_code not in _TRY_AGAIN:
                return response.raise_for_status()
            self._pause(
                str(response.status_code), float(response.headers.get("retry-after", _PAUSE_S))
            )
        raise RuntimeError("the storm was given up")

    def close(self) -> None:
        self._closed = True
        self._threads.shutdown(cancel_futures=True)
        self._http.close()

    def _draw(self, body: dict[str, Any]) -> Outcome:
        job = self.call(
            "POST", "/v1/jobs", json=body, headers={"Idempotency-Key": uuid4().hex}
        ).json()
        while job["state"] in ("queued", "running"):
            job = self.call("GET", job["links"]["self"], params={"wait": 5}).json()
        return Outcome(
            job,
            {
                image["index"]: self._png(image)
                for image in job["images"]
                if image["state"] == "finished"
            },
        )

    def _png(self, image: dict[str, Any]) -> bytes:
        png = self.call("GET", image["url"]).content
        assert hashlib.sha256(png).hexdigest() == image["sha256"], image
        return png

    def _pause(self, why: str, seconds: float) -> None:
        self.setbacks[why] += 1
        time.sleep(seconds)
