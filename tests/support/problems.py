"""Checks of the API's errors."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    """Return the body of an error, checked for what RFC 9457 and this API ask of each."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    body: dict[str, Any] = response.json()
    assert response.status_code == status == body["status"], body
    assert body["type"].startswith("urn:problem-type:ddpm:")
    assert body["title"]
    fact, _, remedy = body["detail"].partition(";")
    assert fact.strip()
    assert remedy.strip(), "no remedy"
    return body


def problem_within(
    seconds: float, status: int, ask: Callable[[], httpx.Response]
) -> httpx.Response:
    """Return an error that came within `seconds`, at the first of three attempts that was in time.

    A busy machine may hold up one of them. An API that waits for longer is late each time.
    """
    took: list[float] = []
    while len(took) < 3:
        began = time.monotonic()
        response = ask()
        took.append(time.monotonic() - began)
        problem(response, status)
        if took[-1] < seconds:
            return response
    raise AssertionError(f"the answers took {took} s")
