"""What every error of the API is checked for."""

from __future__ import annotations

from typing import Any

import httpx


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    """The body of an error, checked for what RFC 9457 and style.md ask of each."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    body: dict[str, Any] = response.json()
    assert response.status_code == status == body["status"], body
    assert body["type"].startswith("urn:problem-type:ddpm:")
    assert body["title"]
    fact, _, remedy = body["detail"].partition(";")
    assert fact.strip()
    assert remedy.strip(), "no remedy"
    return body
