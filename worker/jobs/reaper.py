"""Shards whose worker is gone: they go back to the queue, or their job fails.

Every worker and every API process does this, any number of them at once.
"""

from __future__ import annotations

import logging

from redis import Redis

from worker.jobs import transitions
from worker.jobs.domain import Priority, job_of
from worker.jobs.shard_queue import (
    LEASE_S,
    MAX_LOSSES,
    failed_shards,
    reap,
    sweep,
    withdraw,
)

log = logging.getLogger(__name__)
REAP_EVERY_S = LEASE_S / 5
# What others left in RQ's keys is looked for in one round of so many: it reads every queue.
SWEEP_EVERY = 5


class Reaper:
    """Finds lost shards. A call that fails midway leaves the rest to the next call."""

    def __init__(self, redis: Redis, lease_s: float = LEASE_S) -> None:
        self._redis = redis
        self._lease_s = lease_s
        self._rounds = 0

    def run_once(self) -> None:
        """Requeue or fail the shards that were lost, and forget the jobs whose record expired.

        Raises:
            RedisError: what redis-py raises.
        """
        for shard_id, outcome in reap(self._redis):
            log.warning("shard %s was lost by its worker: %s", shard_id, outcome)
        # All failed shards, not only those of this call: a kill may have come in between.
        for shard_id, reason in failed_shards(self._redis):
            self._fail_job(shard_id, reason)
        for priority in Priority:
            keys = transitions.transition_keys("", priority)
            transitions.FORGET_EXPIRED.eval(self._redis, **keys)
        # Last, since a full server may refuse it.
        if self._rounds % SWEEP_EVERY == 0:
            for shard_id in sweep(self._redis, self._lease_s):
                log.warning("shard %s was left by a worker of RQ's: requeued", shard_id)
        self._rounds += 1

    def _fail_job(self, shard_id: str, reason: str) -> None:
        last = f" (the last said: {reason})" if reason else ""
        message = (
            f"{MAX_LOSSES} workers in a row were lost while they ran this job, "
            f"and got no further{last}; "
            "post it again, and if it happens again ask the operator"
        )
        transitions.fail_job(self._redis, job_of(shard_id), "workers_lost", message)
        withdraw(shard_id, self._redis)
