"""Prints when the service answers, and until then what it waits for."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import httpx

from cli.console import say
from cli.problem import detail

_ASK_EVERY_S = 0.5
_COMPLAIN_EVERY_S = 30.0

_STILL_STARTING = "the workers load their models; the first start also measures the machine"


@dataclass(slots=True)
class WaitUntilReady:
    """Asks `/readyz` twice a second until the answer is 200, and never again.

    Attributes:
        url: Base URL of the service.
        keyed: Whether clients need a key, which the example then shows.
        ready: Whether the service has answered 200.
    """

    url: str
    keyed: bool = False
    ready: bool = False
    _next_question: float = 0.0
    _next_complaint: float = field(default_factory=lambda: time.monotonic() + _COMPLAIN_EVERY_S)

    def __call__(self) -> None:
        """Ask if it is time to, and print what is new. Call it often."""
        now = time.monotonic()
        if self.ready or now < self._next_question:
            return
        self._next_question = now + _ASK_EVERY_S
        fault = self._fault()
        if fault is None:
            self.ready = True
            say(f"ready on {self.url}\n{example(self.url, self.keyed)}")
        elif now >= self._next_complaint:
            self._next_complaint = now + _COMPLAIN_EVERY_S
            say(f"not ready yet: {fault}")

    def _fault(self) -> str | None:
        try:
            # Without keys the API answers to localhost, on whatever address it listens.
            answer = httpx.get(
                f"{self.url}/readyz", headers={"host": "localhost"}, timeout=1, trust_env=False
            )
        except httpx.HTTPError as error:
            return f"no answer from {self.url} ({error})"
        if answer.status_code == 200:
            return None
        # A worker that has not begun to load is starting too: the supervisor has started some.
        starting = "no-worker" in answer.text or "workers-starting" in answer.text
        return _STILL_STARTING if starting else detail(answer)


def example(url: str, keyed: bool) -> str:
    """Return a `curl` command that posts a job."""
    key = ' -H "Authorization: Bearer $DDPM_KEY"' if keyed else ""
    headers = f"{key} -H 'Content-Type: application/json'"
    return f"""  curl {url}/v1/jobs{headers} -d '{{"count": 16, "seed": 7}}'"""
