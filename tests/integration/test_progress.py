"""What a worker's reports cost Redis: each write waits for the disk, so what is said at once goes out at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
from redis import Redis

from worker import contract
from worker.results import Results
from worker.store import InRedis


def reads(redis: Redis) -> int:
    return redis.info("stats")["total_reads_processed"]


def test_the_progress_of_all_shards_of_a_worker_is_one_write(
    api: httpx.Client, redis: Redis, post: Callable[..., dict[str, Any]]
):
    job = post(count=1024, steps=10)
    recipe = contract.Recipe("tiny", "ab" * 32, "ddpm", 10, "fixed_small", 0.0, 1)
    shards = list(contract.shards_of(job["id"], recipe, 0, 1024, "local", "interactive"))
    results = Results(redis, InRedis())
    results.start(shards[0], 1)
    results.progress([(shards[0], 0, 0)])
    before = reads(redis)
    told = results.progress([(shard, 5, 320) for shard in shards] + [(replace(shards[0], job="0" * 32), 5, 320)])
    assert reads(redis) - before < len(shards) / 2, "one write for each would be 17"
    assert told == [True] * 16 + [False], "each is told whether it is still wanted"
    now = api.get(job["links"]["self"]).json()
    assert (now["progress"]["step"], now["progress"]["fraction"]) == (5, 0.5)
