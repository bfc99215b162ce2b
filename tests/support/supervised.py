"""A worker in a thread of this process that is started again when it ends by a fault."""

from __future__ import annotations

import threading

from redis import Redis

from worker.__main__ import build
from worker.jobs.keys import LEASES
from worker.process.loaded_model import LoadedModel
from worker.process.loop import WorkerLoop
from worker.results.in_redis import InRedis


class Killed(BaseException):
    """Ends a worker as SIGKILL or a segmentation fault would: it does nothing more."""


class Supervised:
    """A worker in a thread.

    Whenever it breaks off or is killed, it is started again with an empty engine.
    """

    def __init__(self, redis: Redis, model: LoadedModel) -> None:
        self.redis = redis
        self.model = model
        self.faults: list[BaseException] = []
        self._worker = self._build()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_running)
        self._thread.start()

    def stop(self) -> None:
        """End the worker in good order, and leave the engine empty."""
        self._over.set()
        while self._thread.is_alive():
            self._worker.request_stop()
            self._thread.join(0.1)
        self._empty_engine()

    def _build(self) -> WorkerLoop:
        return build(self.redis, {"tiny": self.model}, "cpu", InRedis())

    def _keep_running(self) -> None:
        while not self._over.is_set():
            try:
                self._worker.run()
            except BaseException as error:
                self.faults.append(error)
                if isinstance(error, Killed):
                    self._let_lapse()
                self._empty_engine()
                self._worker = self._build()

    def _let_lapse(self) -> None:
        self._worker.parts.threads.stop(10)
        for lease in self._worker.parts.shards.leases:
            self.redis.zadd(LEASES, {lease.execution.composite_key: 0})

    def _empty_engine(self) -> None:
        for active in self._worker.active:
            self.model.engine.cancel(active.chains())
