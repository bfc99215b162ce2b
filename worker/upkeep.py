"""What keeps a worker's word: heartbeats for its leases, the rescue of shards whose worker is gone, what it says of itself."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from threading import Event
from typing import cast

from redis import Redis
from rq import Queue

from worker import contract
from worker.contract import WorkerInfo, job_of
from worker.intake import Inbox, Lost
from worker.queue import LEASE_S, MAX_LOSSES, discard, given_up, reap
from worker.results import Results
from worker.rq_worker import ShardWorker

log = logging.getLogger(__name__)
BEAT_EVERY_S = LEASE_S / 5


class Upkeep:
    """One turn every BEAT_EVERY_S."""

    def __init__(
        self, redis: Redis, shards: ShardWorker, results: Results, inbox: Inbox, info: Callable[[], WorkerInfo], stopping: Event
    ) -> None:
        self._redis, self._shards, self._results, self._inbox, self._info, self._stopping = (
            redis,
            shards,
            results,
            inbox,
            info,
            stopping,
        )

    def turn(self) -> None:
        for lease in self._shards.beat():
            self._inbox.put(Lost(lease))
        self._introduce()
        for shard_id, outcome in reap(self._shards.queues, self._shards.lease_s):
            log.warning("shard %s was lost by its worker: %s", shard_id, outcome)
        for queue in self._shards.queues:  # all of them, not only those of this turn: a kill may have come in between
            for shard_id in given_up(queue):
                self._give_up(queue, shard_id)
        self._stopping.wait(BEAT_EVERY_S)

    def sign_off(self) -> None:
        self._redis.hdel(contract.WORKERS, self._shards.name)

    def _introduce(self) -> None:
        info = self._info()
        self._redis.hset(contract.WORKERS, info.name, json.dumps(asdict(info)))
        self._redis.expire(contract.WORKERS, round(4 * LEASE_S))
        said = cast("dict[bytes, bytes]", self._redis.hgetall(contract.WORKERS))
        if dead := [name for name, text in said.items() if json.loads(text)["until"] < time.time()]:
            self._redis.hdel(contract.WORKERS, *dead)

    def _give_up(self, queue: Queue, shard_id: str) -> None:
        message = (
            f"{MAX_LOSSES} workers were lost while they ran this job; post it again, and if it happens again ask the operator"
        )
        self._results.fail(job_of(shard_id), "workers_lost", message)
        discard(queue, shard_id)


def until() -> float:
    """When what a worker says of itself now is to be believed no longer."""
    return time.time() + LEASE_S
