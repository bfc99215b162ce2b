"""Metrics for Prometheus: how much work waits, and how fast the workers are.

They are read from Redis at every scrape, so all API processes agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from redis.asyncio import Redis

from app.operation import waiting
from models.checkpoints.catalog import Card
from worker.jobs.domain import Priority
from worker.jobs.keys import LEFT, LOAD, PACES, WORKERS, open_key
from worker.jobs.worker_registry import READ_WORKERS, WorkerInfo, parse_workers


async def scrape(redis: Redis, cards: Mapping[str, Card]) -> bytes:
    """Write the metrics in the text format of Prometheus.

    It takes one round trip to Redis, or two when a pace has changed.

    Args:
        redis: The job store.
        cards: The models' cards by name, which say what a step costs.

    Raises:
        redis.RedisError: Redis did not answer.
    """
    async with redis.pipeline(transaction=False) as pipe:
        READ_WORKERS.eval(pipe, workers=WORKERS)
        pipe.hvals(LOAD)
        pipe.hvals(LEFT)
        pipe.hgetall(PACES)
        for priority in Priority:
            pipe.zcard(open_key(priority))
        entries, loads, left, paces, *counts = await pipe.execute()
    jobs = {str(priority): count for priority, count in zip(Priority, counts, strict=True)}
    workers = parse_workers(entries)
    remembered = {model.decode(): float(pace) for model, pace in paces.items()}
    measured = waiting.measured_paces(workers)
    await waiting.remember_paces(redis, remembered, measured)
    image_steps = waiting.image_steps_left(left, cards)
    image_seconds = waiting.image_seconds(image_steps, remembered | measured, cards)
    registry = CollectorRegistry()
    registry.register(_Metrics(jobs, sum(map(float, loads)), workers))
    registry.register(_Waiting(image_steps, image_seconds))
    return generate_latest(registry)


class _Waiting(Collector):
    """What waits for each model, as one scrape found it."""

    def __init__(
        self, image_steps: Mapping[str, float], image_seconds: Mapping[str, float]
    ) -> None:
        self._image_steps = image_steps
        self._image_seconds = image_seconds

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Give each metric with its samples."""
        yield _by_model(
            "ddpm_waiting_image_steps",
            "Image-steps left to run, of the model's open jobs",
            self._image_steps,
        )
        yield _by_model(
            "ddpm_waiting_image_seconds",
            "Seconds that one worker would need for them, at the present or last known pace",
            self._image_seconds,
        )


def _by_model(name: str, about: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, about, labels=["model"])
    for model, value in values.items():
        family.add_metric([model], value)
    return family


class _Metrics(Collector):
    """The metrics of jobs and workers, as one scrape found them."""

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
