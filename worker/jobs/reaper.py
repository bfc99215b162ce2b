"""Shards whose worker is gone: back to the queue, or given up. Workers see to it and so does the API, any number at once."""

from __future__ import annotations

import logging
from typing import cast

from redis import Redis
from rq import Queue

from worker.jobs import transitions
from worker.jobs.domain import Priority, job_of
from worker.jobs.keys import job_key
from worker.jobs.shard_queue import LEASE_S, MAX_LOSSES, discard, given_up, our_queues, reap

log = logging.getLogger(__name__)
REAP_EVERY_S = LEASE_S / 5


class Reaper:
    """Raises what Redis raises; the next turn does what this one has left."""

    def __init__(self, redis: Redis, lease_s: float = LEASE_S) -> None:
        self._redis, self._lease_s = redis, lease_s

    def run_once(self) -> None:
        queues = our_queues(self._redis)
        for shard_id, outcome in reap(queues, self._lease_s):
            log.warning("shard %s was lost by its worker: %s", shard_id, outcome)
        for (
            queue
        ) in queues:  # all of them, not only those of this turn: a kill may have come in between
            for shard_id, reason in given_up(queue):
                self._give_up(queue, shard_id, reason)
        for priority in Priority:
            keys = transitions.transition_keys("", priority)
            transitions.FORGET_EXPIRED.eval(self._redis, **keys)

    def _give_up(self, queue: Queue, shard_id: str, reason: str) -> None:
        said = f" (the last said: {reason})" if reason else ""
        message = f"{MAX_LOSSES} workers in a row were lost while they ran this job, and got no further{said}"
        remedy = "post it again, and if it happens again ask the operator"
        fail(self._redis, job_of(shard_id), "workers_lost", f"{message}; {remedy}")
        discard(queue, shard_id)


def fail(redis: Redis, job: str, code: str, message: str) -> None:
    """End the job as failed, unless it has ended or is gone."""
    priority = cast("bytes | None", redis.hget(job_key(job), "priority"))
    if priority is not None:
        keys = transitions.transition_keys(job, priority.decode())
        transitions.FAIL.call(redis, **keys, code=code, message=message)
