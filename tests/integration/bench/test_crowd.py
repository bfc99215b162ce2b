"""A small crowd: `bench/commands/pollers.py` without its figures.

It meets no error, and no stream misses the end of its job.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import uvloop
from redis import Redis

from bench.load.crowd import crowd
from bench.load.pretence import Pretence, PretendJob, Reports

Post = Callable[..., dict[str, Any]]


def test_100_pollers_and_20_streams_see_no_error_and_every_end(
    url: str, redis: Redis, valkey_url: str, post: Post
) -> None:
    jobs = [PretendJob(post(count=count)["id"], count) for count in [1, 16, 64, 100] * 5]
    workers = Pretence(valkey_url)
    workers.start(jobs)
    status = [f"/v1/jobs/{jobs[n % 20].id}" for n in range(100)]
    events = [f"/v1/jobs/{job.id}/events" for job in jobs]
    with Reports(valkey_url, jobs):
        port = urlsplit(url).port or 0
        tally = uvloop.run(crowd(port, status, events, 3, lambda: workers.finish(jobs)))
    assert tally.errors == []
    assert tally.ended == 20
    assert len(tally.latencies_s) >= 100
