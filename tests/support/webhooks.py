"""Jobs with webhooks, and what becomes of these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
from redis import Redis

from tests.support.processes import eventually
from tests.support.worker import IdleWorker
from worker.jobs.keys import WEBHOOK_LANE_PREFIX, WEBHOOKS

Post = Callable[..., dict[str, Any]]
SECRET = "a secret of the service, for tests"
OLD_SECRET = "the secret of the service that was before"


def finished_job(worker: IdleWorker, post: Post, url: str) -> str:
    """Post a job with a webhook and finish it; its id."""
    job: str = post(webhook=url)["id"]
    worker.start(job)
    worker.publish(job, [0])
    return job


def webhook_status(api: httpx.Client, job: str) -> dict[str, Any]:
    """Ask the API what has become of a job's webhook."""
    status: dict[str, Any] = api.get(f"/v1/jobs/{job}").json()["webhook"]
    return status


def wait_for_state(api: httpx.Client, job: str, state: str) -> dict[str, Any]:
    """Wait until a job's webhook is in this state, and give its status."""
    eventually(
        lambda: webhook_status(api, job)["state"] == state, 60, f"the webhook of {job} is {state}"
    )
    return webhook_status(api, job)


def make_due(redis: Redis, job: str) -> None:
    """Have a job's webhook sent now, whenever it would be."""
    redis.zadd(WEBHOOKS, {job: 0})


def due_at(redis: Redis, job: str) -> float | None:
    """Tell when a job's webhook is due, by the clock of the job store; None if it never is."""
    keys = [WEBHOOKS, *redis.scan_iter(f"{WEBHOOK_LANE_PREFIX}*")]
    return next((due for key in keys if (due := redis.zscore(key, job)) is not None), None)


def nothing_is_due(redis: Redis) -> bool:
    """Tell whether no webhook is left to send, now or later."""
    return not redis.keys(f"{WEBHOOKS}*")
