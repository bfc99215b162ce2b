"""A worker that computes nothing: it drives the contract's scripts, as workers do."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from io import BytesIO

from PIL import Image
from redis import Redis

from worker.jobs import transitions
from worker.jobs.keys import WORKERS, job_key, preview_key, progress_field
from worker.jobs.scripts import Argument, Script
from worker.jobs.worker_registry import ModelInfo, WorkerInfo
from worker.results.in_redis import InRedis
from worker.results.store import ResultsStore


def png_of(index: int, size: int = 8) -> bytes:
    """A grey square whose brightness tells the index."""
    out = BytesIO()
    Image.new("L", (size, size), index % 256).save(out, "PNG")
    return out.getvalue()


def say(redis: Redis, info: WorkerInfo, lives_s: float = 60.0) -> None:
    """As a worker does, but without removing those that are gone."""
    redis.hset(WORKERS, info.name, f"{time.time() + lives_s} {info.to_json()}")


class IdleWorker:
    def __init__(self, redis: Redis, store: ResultsStore | None = None) -> None:
        self.redis, self.store = redis, store or InRedis()

    def announce(
        self,
        *,
        image_steps_per_s: float = 100.0,
        lives_s: float = 60.0,
        models: tuple[str, ...] = ("tiny",),
    ) -> None:
        served = ModelInfo("fp32", "pytorch", 1, {1: 1 / image_steps_per_s})
        say(self.redis, WorkerInfo("worker-1", "cpu", dict.fromkeys(models, served), 1.0), lives_s)

    def start(self, job: str) -> bytes | None:
        return self._run(transitions.START, job, attempt=1, external=int(self.store.external))

    def progress(self, job: str, shard: int, least: int, image_steps: int) -> bool:
        return bool(
            self._run(
                transitions.PROGRESS,
                job,
                field=progress_field(shard),
                progress=f"{least},{image_steps}",
            )
        )

    def publish(self, job: str, indices: Iterable[int]) -> bool:
        pngs = [(index, png_of(index)) for index in indices]
        kept = zip(pngs, self.store.put(job, pngs), strict=True)
        images = [
            (index, hashlib.sha256(png).hexdigest(), in_redis) for (index, png), in_redis in kept
        ]
        return bool(self._run(transitions.PUBLISH, job, images=images))

    def show(self, job: str, index: int, shade: int = 77, lives_ms: int = 10_000) -> None:
        """A preview. It lives longer than a real one, since a busy machine may be late to look."""
        self.redis.set(preview_key(job, index), png_of(shade), px=lives_ms)

    def fail(self, job: str, code: str, message: str) -> bool:
        return bool(self._run(transitions.FAIL, job, code=code, message=message))

    def _run(self, script: Script, job: str, **args: Argument) -> bytes | None:
        priority = (self.redis.hget(job_key(job), "priority") or b"interactive").decode()
        return script.eval(self.redis, **transitions.transition_keys(job, priority), **args)
