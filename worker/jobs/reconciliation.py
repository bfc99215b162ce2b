"""Finds what lost keys have left behind, and sets it right: slowly, some jobs in each round.

A server that evicts keys, or a person with a client, may take away a queue, a shard, a job's record
or the set of leases. Jobs would wait or run until their record expires.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import cast

from redis import Redis
from redis.exceptions import WatchError

from worker.jobs import transitions
from worker.jobs.domain import Origin, Priority, Recipe, Shard, job_of, shards_of
from worker.jobs.keys import SHARD_PREFIX, job_key
from worker.jobs.scripts import load
from worker.jobs.shard_queue import FAILED_TTL_S, enqueue, join_rotations
from worker.logs import event

log = logging.getLogger(__name__)
# Jobs of a priority in one round: at worst a few milliseconds of Redis.
JOBS_AT_ONCE = 32
_RECONCILE = load("reconcile_jobs")


class Reconciler:
    """Goes round the open jobs. Any number of processes may do it."""

    def __init__(self, redis: Redis, jobs_at_once: int = JOBS_AT_ONCE) -> None:
        self._redis = redis
        self._jobs_at_once = jobs_at_once
        self._offsets = dict.fromkeys(Priority, 0)
        self._cursors = dict.fromkeys(Priority, "0")
        # Shards without a hash, by the way round the jobs before this one, and by this one.
        self._were_gone: dict[Priority, set[str]] = {priority: set() for priority in Priority}
        self._are_gone: dict[Priority, set[str]] = {priority: set() for priority in Priority}

    def run_once(self) -> None:
        """Look at the next jobs.

        Raises:
            RedisError: what redis-py raises.
        """
        for priority in Priority:
            self._look_at(priority)

    def _look_at(self, priority: Priority) -> None:
        offset, cursor, gone, done = _RECONCILE.call(
            self._redis,
            **transitions.transition_keys("", priority),
            offset=self._offsets[priority],
            most=self._jobs_at_once,
            cursor=self._cursors[priority],
            priority=priority.value,
            failed_ttl_s=FAILED_TTL_S,
        )
        self._offsets[priority] = offset
        self._cursors[priority] = cursor.decode()
        for what, outcome in zip(done[::2], done[1::2], strict=True):
            log.warning("%s was %s", what.decode(), outcome.decode(), extra=event("keys.recovered"))
        for shard_id in map(bytes.decode, gone):
            self._are_gone[priority].add(shard_id)
            # Seen twice: it is not one that ends at this moment.
            if shard_id in self._were_gone[priority]:
                self._post_again(shard_id)
        if offset == 0:
            self._were_gone[priority] = self._are_gone[priority]
            self._are_gone[priority] = set()

    def _post_again(self, shard_id: str) -> None:
        key = SHARD_PREFIX + shard_id
        record = cast("dict[bytes, bytes]", self._redis.hgetall(job_key(job_of(shard_id))))
        fields = {name.decode(): value.decode() for name, value in record.items()}
        if fields.get("state") not in ("queued", "running"):
            return
        try:
            shard = next(shard for shard in _shards(fields) if shard.id == shard_id)
        # The record is of another version of the service.
        except (KeyError, ValueError, StopIteration):
            return
        with self._redis.pipeline() as pipe:
            pipe.watch(key)
            if pipe.exists(key):
                return
            pipe.multi()
            enqueue([shard], pipe, Origin.from_hash(record))
            join_rotations([shard], pipe)
            try:
                pipe.execute()
            # Another process was faster.
            except WatchError:
                return
        log.warning(
            "shard %s was posted again, as it was gone before its images",
            shard_id,
            extra=event("shard.recovered", job=job_of(shard_id), shard=shard_id),
        )


def _shards(fields: Mapping[str, str]) -> list[Shard]:
    recipe = Recipe.from_text(fields)
    start, count = int(fields["start"]), int(fields["count"])
    found = shards_of(fields["id"], recipe, start, count, fields["owner"], fields["priority"])
    return list(found)
