"""Paths of what the API serves, as its clients see them: behind the root path of a proxy."""

from __future__ import annotations

from contextvars import ContextVar

# Set anew for each request (app/http/proxies.py), since proxies may name it themselves.
ROOT_PATH: ContextVar[str] = ContextVar("root path", default="")


def model_path(model: str) -> str:
    """Give the path of a model."""
    return f"{ROOT_PATH.get()}/v1/models/{model}"


def job_path(job: str) -> str:
    """Give the path of a job."""
    return f"{ROOT_PATH.get()}/v1/jobs/{job}"
