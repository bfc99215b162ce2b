"""Removal of what is due in the results store: images past their time to live, or of deleted jobs.

`ddpm:expiring` holds what is due and when. A worker claims an entry by setting it to a later time,
and takes it out when the objects are gone. An entry that was set anew meanwhile stays. So after a
kill at any moment the removal is done again, and nothing else is lost.
"""

from __future__ import annotations

import logging
from threading import Event

from redis import Redis

from worker.jobs.keys import EXPIRING
from worker.jobs.scripts import load
from worker.logs import event
from worker.results.store import ResultsStore

log = logging.getLogger(__name__)
POLL_EVERY_S = 5.0
# Seconds for which nobody else gets an entry that a worker has claimed.
CLAIM_S = 120.0
_CLAIM = load("claim_expired")
_SETTLE = load("settle_expired")


class ResultsCleanup:
    """Removes all that is due, one job after the other."""

    def __init__(self, redis: Redis, store: ResultsStore, stopping: Event) -> None:
        """Make a cleanup.

        Args:
            redis: the job store.
            store: the results store, not in Redis.
            stopping: is set when the worker is to stop; then no further job is begun.
        """
        self._redis = redis
        self._store = store
        self._stopping = stopping

    def run_once(self) -> None:
        """Remove all that is due now.

        Raises:
            RedisError: Redis did not answer, or refused.
            StoreFault: the results store did not remove a job's images.
        """
        while not self._stopping.is_set():
            claimed = _CLAIM.call(self._redis, expiring=EXPIRING, claim_s=CLAIM_S)
            if claimed is None:
                break
            job, until = claimed
            self._store.remove_all(job.decode())
            _SETTLE.call(self._redis, expiring=EXPIRING, job=job, claimed_until=until)
            log.info(
                "removed the images of job %s from the results store",
                job.decode(),
                extra=event("results.removed", job=job.decode()),
            )
