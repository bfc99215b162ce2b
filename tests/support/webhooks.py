"""Jobs with webhooks, and what became of these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
from redis import Redis

from tests.support.processes import eventually
from tests.support.worker import IdleWorker
from worker.jobs.keys import WEBHOOKS

Post = Callable[..., dict[str, Any]]
SECRET = "a secret of the service, for tests"


def ended(api: httpx.Client, worker: IdleWorker, post: Post, url: str) -> str:
    """A job with a webhook that has just finished."""
    job: str = post(webhook=url)["id"]
    worker.start(job)
    worker.publish(job, [0])
    return job


def status(api: httpx.Client, job: str) -> dict[str, Any]:
    found: dict[str, Any] = api.get(f"/v1/jobs/{job}").json()["webhook"]
    return found


def in_state(api: httpx.Client, job: str, state: str) -> dict[str, Any]:
    eventually(lambda: status(api, job)["state"] == state, 10, f"the webhook of {job} is {state}")
    return status(api, job)


def due_now(redis: Redis, job: str) -> None:
    redis.zadd(WEBHOOKS, {job: 0})
