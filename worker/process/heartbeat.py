"""What keeps a worker's word: heartbeats for its leases, the rescue of shards whose worker is gone, what it says of itself."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from threading import Event

from redis import Redis

from worker.jobs.keys import WORKERS
from worker.jobs.reaper import REAP_EVERY_S, Reaper
from worker.jobs.shard_queue import LEASE_S
from worker.jobs.worker_registry import ANNOUNCE_WORKER, WorkerInfo, parse_workers
from worker.process.messages import LeaseLost, MessageQueue
from worker.process.shard_leases import ShardLeases

log = logging.getLogger(__name__)
HEARTBEAT_EVERY_S = REAP_EVERY_S
HUNG_HEARTBEATS = 40


class Heartbeat:
    """One turn every BEAT_EVERY_S. The rescue has turns of its own: where Redis is slow they take longer than a lease may."""

    def __init__(
        self,
        redis: Redis,
        shards: ShardLeases,
        inbox: MessageQueue,
        info: Callable[[], WorkerInfo],
        turns: Callable[[], int],
        stopping: Event,
    ) -> None:
        """`turns`: how many the loop that steps has made."""
        self._redis, self._shards, self._inbox, self._stopping = redis, shards, inbox, stopping
        self._info, self._turns = info, turns
        self._turned, self._unturned = (
            0,
            0,
        )  # the loop's turns at the last beat, and beats since it made one
        self._compared: set[str] = set()  # names of workers
        self._rescue = Reaper(redis, shards.lease_s)

    def run_once(self) -> None:
        self._end_if_hung()
        for lease in self._shards.beat():
            self._inbox.put(LeaseLost(lease))
        self._introduce()
        self._stopping.wait(HEARTBEAT_EVERY_S)

    def rescue(self) -> None:
        self._rescue.run_once()
        self._stopping.wait(REAP_EVERY_S)

    def _end_if_hung(self) -> None:
        """A step that never ends, as of a GPU that does not answer, would hold its shards for ever: their leases are prolonged.

        Beats are counted and not seconds, of which a process that was stopped knows nothing.
        """
        turned = self._turns()
        self._unturned = self._unturned + 1 if turned == self._turned else 0
        self._turned = turned
        if self._unturned < HUNG_HEARTBEATS:
            return
        said = f"no step has ended for {HUNG_HEARTBEATS * HEARTBEAT_EVERY_S:.0f} s"
        log.critical("worker %s ends: %s", self._shards.name, said)
        try:
            self._shards.abandon(None, said)
        finally:
            os._exit(1)  # nothing else ends a thread that waits for a device

    def sign_off(self) -> None:
        self._redis.hdel(WORKERS, self._shards.name)

    def _introduce(self) -> None:
        info = self._info()
        living = ANNOUNCE_WORKER.call(
            self._redis, workers=WORKERS, name=info.name, info=info.to_json(), lives_s=LEASE_S
        )
        self._compare(info, parse_workers(living))

    def _compare(self, info: WorkerInfo, others: Iterable[WorkerInfo]) -> None:
        """The same seed gives the same bytes among workers that compute alike only."""
        for other in others:
            if other.name not in self._compared:
                for difference in info.differences(other):
                    log.warning(
                        "worker %s runs %s: their pictures of one seed differ by a grey level here and there; "
                        "give all workers of a fleet one kind of device and one DDPM_PRECISION, and install them alike",
                        other.name,
                        difference,
                    )
        self._compared = {other.name for other in others}
