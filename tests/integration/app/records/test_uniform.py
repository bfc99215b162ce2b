"""Whether all of a job was drawn by workers of one fingerprint, as its JSON says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
from redis import Redis

from tests.support.worker import IdleWorker


def test_the_jobs_json_says_whether_it_is_uniform(
    api: httpx.Client, redis: Redis, post: Callable[..., dict[str, Any]]
):
    worker, job = IdleWorker(redis), post(count=2)["id"]

    def said() -> bool:
        (listed,) = api.get("/v1/jobs").json()["jobs"]
        shown = api.get(f"/v1/jobs/{job}").json()["uniform"]
        assert listed["uniform"] == shown
        return shown

    assert said()
    assert worker.start(job) == b"running", "by a worker of a version without fingerprints"
    assert worker.start(job, "aaa", "bbb") == b"running"
    assert worker.start(job, "bbb", "aaa ccc") == b"elsewhere"
    assert worker.start(job, "aaa", "bbb") == b"running"
    assert said()
    assert worker.start(job, "bbb", "ccc") == b"running"
    assert not said()
