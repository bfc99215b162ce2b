"""A worker in a thread of this process that is started again when it ends by a fault, and jobs for it."""

from __future__ import annotations

import threading

from redis import Redis

from worker.jobs.domain import Recipe, shards_of
from worker.jobs.keys import CHANGES, job_key, open_key
from worker.jobs.shard_queue import enqueue
from worker.process.loaded_model import LoadedModel
from worker.process.loop import WorkerLoop
from worker.results.in_redis import InRedis


class Killed(BaseException):
    """Ends a worker as SIGKILL or a segmentation fault would: it does nothing more."""


class Supervised:
    """A worker in a thread that is started again, with an empty engine, whenever it breaks off or is killed."""

    def __init__(self, redis: Redis, model: LoadedModel) -> None:
        self.redis, self.model = redis, model
        self.faults: list[BaseException] = []
        self._current, self._over = (
            WorkerLoop(redis, {"tiny": model}, "cpu", InRedis()),
            threading.Event(),
        )
        self._thread = threading.Thread(target=self._keep_running)
        self._thread.start()

    def _keep_running(self) -> None:
        while not self._over.is_set():
            try:
                self._current.run()
            except BaseException as error:
                self.faults.append(error)
                if isinstance(error, Killed):
                    self._let_lapse()
                self.model.engine.cancel(list(self.model.engine._chains))
                self._current = WorkerLoop(self.redis, {"tiny": self.model}, "cpu", InRedis())

    def _let_lapse(self) -> None:
        self._current.crew.stop(10)
        for lease in self._current._shards._leases.values():
            self.redis.zadd(lease.started_key, {lease.execution.composite_key: 0})

    def stop(self) -> None:
        self._over.set()
        while self._thread.is_alive():
            self._current.crew.stopping.set()
            self._thread.join(0.1)


def post(
    redis: Redis, model: LoadedModel, name: str, seed: int, *, count: int = 3, steps: int = 40
) -> str:
    """A job as the API records it; its id is the letter `name`, many times."""
    recipe = Recipe("tiny", model.card.sha256, "dpmpp_2m", steps, "fixed_small", 0.0, seed)
    job, shards = name * 32, list(shards_of(name * 32, recipe, 0, count, "local", "interactive"))
    fields = {
        "id": job,
        "state": "queued",
        "count": count,
        "priority": "interactive",
        "results_ttl_s": 600,
        "attempts": 0,
    }
    with redis.pipeline() as pipe:
        pipe.hset(job_key(job), mapping=fields)
        pipe.zadd(open_key("interactive"), {job: 1})
        enqueue(shards, pipe)
        pipe.publish(CHANGES, f"{job} queued")
        pipe.execute()
    return job


def state(redis: Redis, job: str) -> bytes | None:
    return redis.hget(job_key(job), "state")


def ended(redis: Redis, *jobs: str) -> bool:
    return all(state(redis, job) not in (b"queued", b"running") for job in jobs)
