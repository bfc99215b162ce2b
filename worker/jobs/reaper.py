"""Shards whose worker is gone: they go back to the queue, or their job fails.

Every worker and every API process does this, any number of them at once.
"""

from __future__ import annotations

import logging

from redis import Redis
from redis.exceptions import OutOfMemoryError, ResponseError

from worker.jobs import transitions
from worker.jobs.domain import Priority, job_of
from worker.jobs.reconciliation import Reconciler
from worker.jobs.shard_queue import (
    LEASE_S,
    MAX_LOSSES,
    discard_failed,
    failed_shards,
    reap,
    reason_of,
    sweep,
    withdraw,
)
from worker.logs import event

log = logging.getLogger(__name__)
REAP_EVERY_S = LEASE_S / 5
# What others left in RQ's keys is looked for in one round of so many: it reads every queue.
SWEEP_EVERY = 5
# What lost keys left behind is looked for in one round of so many.
RECONCILE_EVERY = 2
# Jobs whose bytes are looked at in a round, of either kind: 0.5 ms of Redis.
_JOBS_AT_ONCE = 256


class Reaper:
    """Finds lost shards. A call that fails midway leaves the rest to the next call."""

    def __init__(self, redis: Redis, lease_s: float = LEASE_S) -> None:
        self._redis = redis
        self._lease_s = lease_s
        self._reconciler = Reconciler(redis)
        self._rounds = 0
        # Rank of the open job from which the next round goes on.
        self._next = dict.fromkeys(Priority, 0)

    def run_once(self) -> None:
        """Requeue or fail the shards that were lost, and prolong the records of open jobs.

        Raises:
            RedisError: what redis-py raises.
        """
        for shard_id, outcome in reap(self._redis, self._lease_s):
            log.warning(
                "shard %s was lost by its worker: %s",
                shard_id,
                outcome,
                extra=event("shard.lost", job=job_of(shard_id), shard=shard_id, outcome=outcome),
            )
        # All failed shards, not only those of this call: a kill may have come in between.
        for shard_id in failed_shards(self._redis):
            try:
                self._fail_job(shard_id)
            except OutOfMemoryError:
                raise
            # What is no shard of ours strands no other.
            except ResponseError as error:
                log.warning(
                    "%s cannot be failed, and is left alone: %s",
                    shard_id,
                    error,
                    extra=event("shard.stuck", shard=shard_id),
                )
                discard_failed(self._redis, shard_id)
        for priority in Priority:
            self._next[priority] = transitions.TEND_OPEN.eval(
                self._redis,
                **transitions.transition_keys("", priority),
                first=self._next[priority],
            )
        transitions.RECONCILE_BYTES.eval(self._redis, most=_JOBS_AT_ONCE)
        # Last, since a full server may refuse it.
        if self._rounds % SWEEP_EVERY == 0:
            for shard_id in sweep(self._redis, self._lease_s):
                log.warning(
                    "shard %s was left by a worker of RQ's: requeued",
                    shard_id,
                    extra=event("shard.recovered", job=job_of(shard_id), shard=shard_id),
                )
        if self._rounds % RECONCILE_EVERY == RECONCILE_EVERY - 1:
            self._reconciler.run_once()
        self._rounds += 1

    def _fail_job(self, shard_id: str) -> None:
        reason = reason_of(self._redis, shard_id)
        last = f" (the last said: {reason})" if reason else ""
        message = (
            f"{MAX_LOSSES} workers in a row were lost while they ran this job, "
            f"and got no further{last}; "
            "post it again, and if it happens again ask the operator"
        )
        transitions.fail_job(self._redis, job_of(shard_id), "workers_lost", message)
        withdraw(shard_id, self._redis)
