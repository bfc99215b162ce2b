"""Removal of what is due in the results store: images past their time to live, or of deleted jobs.

`ddpm:expiring` holds what is due and when. A worker claims an entry by setting it to a later time,
and takes it out when the objects are gone. An entry that was set anew meanwhile stays. So after a
kill at any moment the removal is done again, and nothing else is lost.
"""

from __future__ import annotations

import logging
from threading import Event
from typing import Any, cast

from redis import Redis

from worker.jobs.keys import EXPIRING, NOW
from worker.results.store import ResultsStore

log = logging.getLogger(__name__)
POLL_EVERY_S = 5.0
# Seconds for which nobody else gets an entry that a worker has claimed.
CLAIM_S = 120.0

# KEYS: expiring. ARGV: seconds. -> a job that is due and until when nobody else gets it, in so many seconds; or false.
_CLAIM = (
    NOW
    + """
local due = redis.call('ZRANGE', KEYS[1], '-inf', now(), 'BYSCORE', 'LIMIT', 0, 1)[1]
if not due then return false end
local until_ = string.format('%d', math.ceil(now() + ARGV[1]))
redis.call('ZADD', KEYS[1], until_, due)
return {due, until_}"""
)

# KEYS: expiring. ARGV: job, until when it was claimed.
_DONE = """
if redis.call('ZSCORE', KEYS[1], ARGV[1]) == ARGV[2] then redis.call('ZREM', KEYS[1], ARGV[1]) end"""


class ResultsCleanup:
    """Removes all that is due, one job after the other."""

    def __init__(self, redis: Redis, store: ResultsStore, stopping: Event) -> None:
        """Make a cleanup.

        Args:
            redis: the job store.
            store: the results store, not in Redis.
            stopping: is set when the worker is to stop; then no further job is begun.
        """
        self._store = store
        self._stopping = stopping
        self._claim, self._done = (
            cast("Any", redis.register_script(script)) for script in (_CLAIM, _DONE)
        )

    def run_once(self) -> None:
        """Remove all that is due now.

        Raises:
            RedisError: Redis did not answer, or refused.
            StoreFault: the results store did not remove a job's images.
        """
        while not self._stopping.is_set():
            claimed = self._claim(keys=[EXPIRING], args=[CLAIM_S])
            if claimed is None:
                break
            job, until = claimed
            self._store.remove_all(job.decode())
            self._done(keys=[EXPIRING], args=[job, until])
            log.info("removed the images of job %s from the results store", job.decode())
