"""Removes from the results store what is due: images past their time to live, and those of deleted jobs.

`ddpm:expiring` says what is due and when. A worker claims an entry by setting it to a later time, and takes it out once the
objects are gone; an entry that was set anew meanwhile stays. So a kill at any moment only means that it is done again.
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
    """One turn removes all that is due."""

    def __init__(self, redis: Redis, store: ResultsStore, stopping: Event) -> None:
        self._store, self._stopping = store, stopping
        self._claim, self._done = (
            cast("Any", redis.register_script(script)) for script in (_CLAIM, _DONE)
        )

    def run_once(self) -> None:
        while not self._stopping.is_set():
            claimed = self._claim(keys=[EXPIRING], args=[CLAIM_S])
            if claimed is None:
                break
            job, until = claimed
            self._store.remove_all(job.decode())
            self._done(keys=[EXPIRING], args=[job, until])
            log.info("removed the images of job %s from the results store", job.decode())
        self._stopping.wait(POLL_EVERY_S)
