"""Keys that are left in the store when every job has ended, and should not be."""

from __future__ import annotations

import re
from collections.abc import Iterable

from redis import Redis

from worker.jobs.keys import COUNTS

# Names and counts without a TTL. They do not grow with the number of jobs, and what is named must
# exist.
_FOR_EVER = {"rq:queues", COUNTS}
_WORKERS = re.compile("rq:workers(:.*)?")
_OF_SHARDS = re.compile(
    "rq:(job|execution|executions|wip|queue|failed|intermediate)[:-].*|.*:chains|ddpm:bundle:.*"
)


def leftovers(redis: Redis) -> list[str]:
    """Return a line for each key without TTL, and each key of a shard or worker that is gone."""
    keys = sorted(key.decode() for key in redis.scan_iter(count=1000))
    lines = []
    for key in keys:
        if _WORKERS.fullmatch(key):
            lines += [f"{key} names {worker}, which is gone" for worker in _gone(redis, key)]
        elif key not in _FOR_EVER and redis.ttl(key) == -1:
            lines.append(f"{key} has no TTL")
        if _OF_SHARDS.fullmatch(key):
            lines.append(f"{key} belongs to no shard that waits or runs")
    return lines


def keys_of_jobs(redis: Redis, jobs: Iterable[str]) -> list[str]:
    """Return the keys that name one of the jobs."""
    ids = set(jobs)
    return [
        key
        for raw in redis.scan_iter(count=1000)
        if ids & set(re.findall("[0-9a-f]{32}", key := raw.decode()))
    ]


def _gone(redis: Redis, workers: str) -> list[str]:
    return [name.decode() for name in redis.smembers(workers) if not redis.exists(name)]
