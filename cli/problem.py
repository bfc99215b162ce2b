"""The text of an error answer, in the service's own words."""

from __future__ import annotations

import httpx


def detail(answer: httpx.Response) -> str:
    """Return the detail of a problem+json, or the status line of anything else."""
    if answer.headers.get("content-type", "").startswith("application/problem+json"):
        problem = answer.json()
        return str(problem.get("detail") or problem["title"])
    return f"{answer.request.url} answered {answer.status_code} {answer.reason_phrase}"
