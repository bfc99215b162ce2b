"""Removes from the results store what is due: images past their time to live, and those of deleted jobs.

`ddpm:expiring` says what is due and when. A worker claims an entry by setting it to a later time, and takes it out once the
objects are gone; an entry that was set anew meanwhile stays. So a kill at any moment only means that it is done again.
"""

from __future__ import annotations

import logging
from threading import Event

from redis import Redis

from worker.jobs.keys import EXPIRING
from worker.jobs.scripts import load
from worker.results.store import ResultsStore

log = logging.getLogger(__name__)
POLL_EVERY_S = 5.0
CLAIM_S = 120.0
_CLAIM = load("claim_expired")
_SETTLE = load("settle_expired")


class ResultsCleanup:
    """One turn removes all that is due."""

    def __init__(self, redis: Redis, store: ResultsStore, stopping: Event) -> None:
        self._redis, self._store, self._stopping = redis, store, stopping

    def run_once(self) -> None:
        while not self._stopping.is_set():
            claimed = _CLAIM.call(self._redis, expiring=EXPIRING, claim_s=CLAIM_S)
            if claimed is None:
                break
            job, until = claimed
            self._store.remove_all(job.decode())
            _SETTLE.call(self._redis, expiring=EXPIRING, job=job, claimed_until=until)
            log.info("removed the images of job %s from the results store", job.decode())
        self._stopping.wait(POLL_EVERY_S)
