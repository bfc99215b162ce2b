"""A worker that computes nothing: it runs the scripts that workers run."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from io import BytesIO
from typing import Any

from PIL import Image
from redis import Redis

from worker.jobs import transitions
from worker.jobs.keys import WORKERS, job_key, preview_key, progress_field
from worker.jobs.scripts import Argument, Script
from worker.jobs.worker_registry import ModelInfo, WorkerInfo
from worker.results.in_redis import InRedis
from worker.results.store import ResultsStore


def png_of(index: int, size: int = 8) -> bytes:
    """Return a PNG of a grey square, whose brightness is the index."""
    out = BytesIO()
    Image.new("L", (size, size), index % 256).save(out, "PNG")
    return out.getvalue()


def publish_info(redis: Redis, info: WorkerInfo, lives_s: float = 60.0) -> None:
    """Publish what a worker says of itself; those that are gone are not removed.

    Args:
        redis: the job store.
        info: what the worker says.
        lives_s: for how many seconds it is believed.
    """
    redis.hset(WORKERS, info.name, f"{time.time() + lives_s} {info.to_json()}")


class IdleWorker:
    """A worker that changes the state of jobs when a test says so."""

    def __init__(self, redis: Redis, store: ResultsStore | None = None) -> None:
        self.redis = redis
        self.store = store or InRedis()

    def announce(
        self,
        *,
        image_steps_per_s: float = 100.0,
        lives_s: float = 60.0,
        models: tuple[str, ...] = ("tiny",),
        name: str = "worker-1",
        fingerprint: str = "a1b2c3d4e5f6",
    ) -> None:
        """Publish a worker of this speed, believed for `lives_s` seconds."""
        served = ModelInfo("fp32", "pytorch", 1, {1: 1 / image_steps_per_s}, fingerprint)
        info = WorkerInfo(name, "cpu", dict.fromkeys(models, served), 1.0)
        publish_info(self.redis, info, lives_s)

    def start(self, job: str, fingerprint: str = "", others: str = "") -> bytes | None:
        """Take a shard of the job; return the job's state, or `elsewhere`.

        Args:
            job: its id.
            fingerprint: the worker's.
            others: those of other living workers, separated by spaces.
        """
        answer = self._run(
            transitions.START,
            job,
            number=0,
            attempt=1,
            external=int(self.store.external),
            fingerprint=fingerprint,
            others=others,
        )
        return answer[0] if answer else None

    def progress(self, job: str, shard: int, least: int, image_steps: int) -> bool:
        """Report the step of the shard's least advanced image, and its image-steps done."""
        return bool(
            self._run(
                transitions.PROGRESS,
                job,
                field=progress_field(shard),
                progress=f"{least},{image_steps}",
            )
        )

    def publish(self, job: str, indices: Iterable[int]) -> bool:
        """Publish images, made by `png_of`; return whether the job is still wanted."""
        pngs = [(index, png_of(index)) for index in indices]
        stored = zip(pngs, self.store.put(job, pngs), strict=True)
        images = [
            (index, hashlib.sha256(png).hexdigest(), in_redis, len(png))
            for (index, png), in_redis in stored
        ]
        return bool(self._run(transitions.PUBLISH, job, field="", progress="", images=images))

    def show(self, job: str, index: int, shade: int = 77, lives_ms: int = 10_000) -> None:
        """Publish a preview.

        It lives longer than a real one, because a busy machine may be late to look.
        """
        self.redis.set(preview_key(job, index), png_of(shade), px=lives_ms)

    def fail(self, job: str, code: str, message: str) -> bool:
        """End the job as failed; return whether it had not ended yet."""
        return bool(self._run(transitions.FAIL, job, code=code, message=message))

    def _run(self, script: Script, job: str, **args: Argument) -> Any:
        priority = (self.redis.hget(job_key(job), "priority") or b"interactive").decode()
        return script.eval(self.redis, **transitions.transition_keys(job, priority), **args)
