"""Metrics for Prometheus: how much work waits, and how fast the workers are.

They are read from Redis at every scrape, so all API processes agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from redis.asyncio import Redis

from worker.jobs.domain import Priority
from worker.jobs.keys import LOAD, WORKERS, open_key
from worker.jobs.worker_registry import READ_WORKERS, WorkerInfo, parse_workers


async def scrape(redis: Redis) -> bytes:
    """Write the metrics in the text format of Prometheus, after one round trip to Redis.

    Raises:
        redis.RedisError: Redis did not answer.
    """
    async with redis.pipeline(transaction=False) as pipe:
        READ_WORKERS.eval(pipe, workers=WORKERS)
        pipe.hvals(LOAD)
        for priority in Priority:
            pipe.zcard(open_key(priority))
        workers, loads, *counts = await pipe.execute()
    jobs = {str(priority): count for priority, count in zip(Priority, counts, strict=True)}
    registry = CollectorRegistry()
    registry.register(_Metrics(jobs, sum(map(float, loads)), parse_workers(workers)))
    return generate_latest(registry)


class _Metrics(Collector):
    """The metrics of one scrape."""

    def __init__(
        self, jobs: Mapping[str, int], image_steps: float, workers: Iterable[WorkerInfo]
    ) -> None:
        self._jobs = jobs
        self._image_steps = image_steps
        self._workers = list(workers)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Give each metric with its samples."""
        jobs = GaugeMetricFamily("ddpm_open_jobs", "Jobs that have not ended", labels=["priority"])
        for priority, count in self._jobs.items():
            jobs.add_metric([priority], count)
        yield jobs
        yield GaugeMetricFamily(
            "ddpm_open_image_steps", "Image-steps left to run, of all open jobs", self._image_steps
        )
        yield GaugeMetricFamily("ddpm_workers", "Workers that are alive", len(self._workers))
        yield from self._collect_workers()

    def _collect_workers(self) -> Iterator[GaugeMetricFamily]:
        rate = GaugeMetricFamily(
            "ddpm_worker_image_steps_per_second",
            "Rate of full batches, at the present speed",
            labels=["worker", "device"],
        )
        step = GaugeMetricFamily(
            "ddpm_worker_step_seconds",
            "A step by batch size, as calibrated for the present threads",
            labels=["worker", "model", "precision", "batch"],
        )
        for worker in self._workers:
            rate.add_metric([worker.name, worker.device], worker.image_steps_per_s)
            for name, model in worker.models.items():
                for size, seconds in model.seconds.items():
                    step.add_metric([worker.name, name, model.precision, str(size)], seconds)
        yield rate
        yield step
