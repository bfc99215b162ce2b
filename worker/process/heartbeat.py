"""A worker's heartbeat: it prolongs the leases and publishes what the worker says of itself."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from redis import Redis

from worker.jobs.keys import WORKER_COUNTERS, WORKERS
from worker.jobs.reaper import REAP_EVERY_S
from worker.jobs.shard_queue import LEASE_S
from worker.jobs.worker_registry import ANNOUNCE_WORKER, WorkerCounters, WorkerInfo, parse_workers
from worker.logs import event
from worker.process.messages import LeaseLost, MessageQueue
from worker.process.shard_leases import ShardLeases

log = logging.getLogger(__name__)
HEARTBEAT_EVERY_S = REAP_EVERY_S


class Heartbeat:
    """Shows every HEARTBEAT_EVERY_S that the worker lives, and what it serves.

    The reaper runs in a thread of its own, because it may take longer than a lease where Redis is
    slow.
    """

    def __init__(
        self,
        redis: Redis,
        shards: ShardLeases,
        messages: MessageQueue,
        describe: Callable[[], WorkerInfo],
        file: Path | None = None,
        counters: WorkerCounters | None = None,
    ) -> None:
        """Make a heartbeat that has not beaten yet.

        Args:
            redis: the job store.
            shards: whose leases are prolonged.
            messages: where lost leases are reported.
            describe: what the worker says of itself now.
            file: is touched whenever Redis has taken a heartbeat. docker/healthy.py reads its age.
            counters: what the worker has done since its start.
        """
        self._redis = redis
        self._shards = shards
        self._messages = messages
        self._describe = describe
        self._file = file
        self._counters = counters or WorkerCounters()
        # Names of the workers that this one was compared with.
        self._compared: set[str] = set()
        # What the other workers said of themselves, at the last announcement and the one before.
        self._others: Sequence[WorkerInfo] = ()
        self._others_before: Sequence[WorkerInfo] = ()

    def run_once(self) -> None:
        """Prolong all leases, report the lost ones, announce the worker, and touch its file.

        A worker that says that it takes no jobs gives back all that it holds. What it has finished
        is sent all the same if it can be, before another worker has drawn it.

        Raises:
            RedisError: Redis did not answer, or refused.
        """
        lost = self._shards.heartbeat()
        fault, leases = self._describe().fault, self._shards.leases
        if fault and leases:
            log.warning(
                "%s: %d shards go back, and none is taken",
                fault,
                len(leases),
                extra=event("worker.at_fault"),
            )
            self._shards.hand_back(leases)
            lost += leases
        for lease in lost:
            self._messages.put(LeaseLost(lease))
        self.announce()
        self._touch()

    def announce(self) -> None:
        """Publish what the worker says of itself, and compare it with what the others say.

        Raises:
            RedisError: Redis did not answer, or refused.
        """
        info = self._describe()
        living = ANNOUNCE_WORKER.call(
            self._redis,
            workers=WORKERS,
            counters=WORKER_COUNTERS,
            name=info.name,
            info=info.to_json(),
            counted=self._counters.to_json(),
            lives_s=LEASE_S,
        )
        others = [other for other in parse_workers(living) if other.name != info.name]
        self._others_before, self._others = self._others, others
        self._compare(info, others)

    def others_fingerprints(self, model: str) -> set[str]:
        """Return the fingerprints of the other living workers that have a model.

        Those of the last but one announcement count too. After an outage of Redis all workers are
        known again only when each has announced itself.
        """
        return {
            served.fingerprint
            for other in (*self._others, *self._others_before)
            if (served := other.models.get(model)) and served.fingerprint
        }

    def others_have(self, model: str, weights: str) -> bool:
        """Tell whether another living worker has these weights of a model."""
        return any(
            served.weights == weights
            for other in (*self._others, *self._others_before)
            if (served := other.models.get(model))
        )

    def sign_off(self) -> None:
        """Remove the worker from those that are known to live.

        Raises:
            RedisError: Redis did not answer, or refused.
        """
        self._redis.hdel(WORKERS, self._shards.name)
        self._redis.hdel(WORKER_COUNTERS, self._shards.name)

    def _touch(self) -> None:
        if self._file is None:
            return
        try:
            self._file.touch()
        # The health check then fails, and this line says why.
        except OSError as error:
            log.warning(
                "DDPM_HEARTBEAT_FILE=%s cannot be written (%s), so a health check that reads it "
                "fails; name a file in a folder that the worker may write",
                self._file,
                error.strerror,
                extra=event("heartbeat.unwritable"),
            )
            self._file = None

    def _compare(self, info: WorkerInfo, others: Iterable[WorkerInfo]) -> None:
        """Warn once of each other worker from which one seed gets other bytes."""
        for other in others:
            if other.name not in self._compared:
                for difference in info.differences(other):
                    log.warning(
                        "worker %s runs %s: their pictures of one seed differ by a grey level here "
                        "and there; give all workers of a fleet one kind of device and one "
                        "DDPM_PRECISION, and install them alike",
                        other.name,
                        difference,
                        extra=event("worker.differs", other=other.name),
                    )
        self._compared = {other.name for other in others}
