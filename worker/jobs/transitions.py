"""Every change of a job's state: each is one script, so that it happens whole or not at all.

A script publishes the change on `keys.CHANGES`. One change is not here, because it belongs to
scripts that move shards: `requeue_if_idle` (worker/jobs/lua/shared/requeue.lua) sets a job back to
queued when the last worker that held a shard of it has lost it or given it back.
worker/jobs/keys.py says what a job's keys hold.
"""

from __future__ import annotations

import logging
from typing import cast

from redis import Redis

from worker.jobs.keys import (
    EXPIRING,
    LEFT,
    LOAD,
    WEBHOOKS,
    chains_key,
    job_key,
    open_key,
    png_key,
    sha256_key,
)
from worker.jobs.scripts import load
from worker.logs import event

log = logging.getLogger(__name__)
START = load("start_job")
PROGRESS = load("report_progress")
SAVE = load("save_chains")
PUBLISH = load("publish_images")
FAIL = load("fail_job")
CANCEL = load("cancel_job")
PREPARE_DELETION = load("prepare_deletion")
TEND_OPEN = load("tend_open_jobs")
RECONCILE_BYTES = load("reconcile_bytes")


def transition_keys(job: str, priority: str) -> dict[str, str]:
    """Return the keys that every script above but SAVE and RECONCILE_BYTES takes, by name."""
    return {
        "record": job_key(job),
        "hashes": sha256_key(job),
        "pngs": png_key(job),
        "open": open_key(priority),
        "chains": chains_key(job),
        "expiring": EXPIRING,
        "left": LEFT,
        "load": LOAD,
        "webhooks": WEBHOOKS,
    }


def fail_job(redis: Redis, job: str, code: str, message: str) -> None:
    """End the job as failed, unless it has ended or is gone."""
    priority = cast("bytes | None", redis.hget(job_key(job), "priority"))
    if priority is not None:
        keys = transition_keys(job, priority.decode())
        if FAIL.call(redis, **keys, code=code, message=message):
            log.error(
                "job %s failed (%s): %s",
                job,
                code,
                message,
                extra=event("job.failed", job=job, reason=code),
            )
