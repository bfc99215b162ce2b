"""What is left in the store when every job has ended, and ought not to be."""

from __future__ import annotations

import re
from collections.abc import Iterable

from redis import Redis

# Sets of names without a TTL. They do not grow with the number of jobs, and what they name must be there.
_QUEUES, _WORKERS = "rq:queues", re.compile("rq:workers(:.*)?")
_OF_SHARDS = re.compile(
    "rq:(job|execution|executions|wip|queue|failed|intermediate)[:-].*|.*:chains"
)


def leftovers(redis: Redis) -> list[str]:
    """One line each: keys without TTL, keys of shards that are no more, workers that are no more."""
    keys = sorted(key.decode() for key in redis.scan_iter(count=1000))
    for_ever = [key for key in keys if redis.ttl(key) == -1]
    return [
        *(
            f"{key} has no TTL"
            for key in for_ever
            if key != _QUEUES and not _WORKERS.fullmatch(key)
        ),
        *(
            f"{key} belongs to no shard that waits or runs"
            for key in keys
            if _OF_SHARDS.fullmatch(key)
        ),
        *(
            f"{key} names {worker}, which is gone"
            for key in keys
            if _WORKERS.fullmatch(key)
            for worker in _gone(redis, key)
        ),
    ]


def of_jobs(redis: Redis, jobs: Iterable[str]) -> list[str]:
    """Keys that name a job."""
    ids = set(jobs)
    return [
        key
        for raw in redis.scan_iter(count=1000)
        if ids & set(re.findall("[0-9a-f]{32}", key := raw.decode()))
    ]


def _gone(redis: Redis, workers: str) -> list[str]:
    return [name.decode() for name in redis.smembers(workers) if not redis.exists(name)]
