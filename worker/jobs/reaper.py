"""Shards whose worker is gone: they go back to the queue, or their job fails.

Every worker and every API process does this, any number of them at once.
"""

from __future__ import annotations

import logging

from redis import Redis
from rq import Queue

from worker.jobs import transitions
from worker.jobs.domain import Priority, job_of
from worker.jobs.shard_queue import (
    LEASE_S,
    MAX_LOSSES,
    discard,
    failed_shards,
    reap,
    shard_queues,
)

log = logging.getLogger(__name__)
REAP_EVERY_S = LEASE_S / 5


class Reaper:
    """Finds lost shards. A call that fails midway leaves the rest to the next call."""

    def __init__(self, redis: Redis, lease_s: float = LEASE_S) -> None:
        self._redis = redis
        self._lease_s = lease_s

    def run_once(self) -> None:
        """Requeue or fail the shards that were lost, and forget the jobs whose record expired.

        Raises:
            RedisError: what redis-py raises.
        """
        queues = shard_queues(self._redis)
        for shard_id, outcome in reap(queues, self._lease_s):
            log.warning("shard %s was lost by its worker: %s", shard_id, outcome)
        # All failed shards, not only those of this call: a kill may have come in between.
        for queue in queues:
            for shard_id, reason in failed_shards(queue):
                self._fail_job(queue, shard_id, reason)
        for priority in Priority:
            keys = transitions.transition_keys("", priority)
            transitions.FORGET_EXPIRED.eval(self._redis, **keys)

    def _fail_job(self, queue: Queue, shard_id: str, reason: str) -> None:
        last = f" (the last said: {reason})" if reason else ""
        message = (
            f"{MAX_LOSSES} workers in a row were lost while they ran this job, "
            f"and got no further{last}; "
            "post it again, and if it happens again ask the operator"
        )
        transitions.fail_job(self._redis, job_of(shard_id), "workers_lost", message)
        discard(queue, shard_id)
