"""Metrics for Prometheus: what waits, what has ended, and what the workers do.

They are read from Redis at every scrape, so all API processes agree, and none is lost when one is
restarted. app/operation/api_metrics.py adds what the API's processes count of themselves.
docs/reference/metrics.md lists all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector
from redis.asyncio import Redis

from app.operation import waiting
from app.operation.api_metrics import ApiMetrics
from models.checkpoints.catalog import Card
from worker.jobs.domain import Priority
from worker.jobs.keys import (
    COUNTS,
    KEPT_BY_OWNER,
    LEFT,
    LOAD,
    PACES,
    WEBHOOKS,
    WORKER_COUNTERS,
    WORKERS,
    open_key,
    rotation_name,
)
from worker.jobs.scripts import load
from worker.jobs.worker_registry import (
    READ_WORKERS,
    WorkerCounters,
    WorkerInfo,
    labels,
    parse_counters,
    parse_workers,
)

_BACKLOG = load("read_backlog")
# Bounds of what a scrape looks at, a few milliseconds of Redis at worst.
_MOST_QUEUES = 100
_MOST_SHARDS = 64
# Codes with which workers and the reaper fail jobs.
_REASONS = (
    "not_finite",
    "unknown_version",
    "workers_lost",
    "wrong_classes",
    "wrong_residual_variance",
    "wrong_weights",
)


async def scrape(redis: Redis, cards: Mapping[str, Card], own: ApiMetrics) -> bytes:
    """Write the metrics in the text format of Prometheus.

    It takes one round trip to Redis, or two when a pace has changed.

    Args:
        redis: The job store.
        cards: The models' cards by name, which say what a step costs.
        own: What this process counts.

    Raises:
        redis.RedisError: Redis did not answer.
    """
    rotations = [(priority, model) for priority in Priority for model in cards]
    async with redis.pipeline(transaction=False) as pipe:
        READ_WORKERS.eval(pipe, workers=WORKERS)
        _BACKLOG.eval(
            pipe,
            webhooks=WEBHOOKS,
            most_queues=_MOST_QUEUES,
            most_shards=_MOST_SHARDS,
            rotations=[rotation_name(priority, model) for priority, model in rotations],
        )
        pipe.hgetall(WORKER_COUNTERS)
        pipe.hgetall(COUNTS)
        pipe.hgetall(LOAD)
        pipe.hgetall(KEPT_BY_OWNER)
        pipe.hvals(LEFT)
        pipe.hgetall(PACES)
        pipe.info("memory")
        for priority in Priority:
            pipe.zcard(open_key(priority))
        answers = await pipe.execute()
    entries, (webhooks, *ages), counters, counts, loads, kept, *rest = answers
    left, paces, memory, *open_jobs = rest
    workers = parse_workers(entries, with_faulty=True)
    working = [worker for worker in workers if not worker.fault]
    remembered = {model.decode(): float(pace) for model, pace in paces.items()}
    measured = waiting.measured_paces(working)
    await waiting.remember_paces(redis, remembered, measured)
    image_steps = waiting.image_steps_left(left, cards)
    image_seconds = waiting.image_seconds(image_steps, remembered | measured, cards)
    registry = CollectorRegistry()
    registry.register(
        _Jobs(
            dict(zip(map(str, Priority), open_jobs, strict=True)),
            {owner.decode(): float(steps) for owner, steps in loads.items()},
            {owner.decode(): float(size) for owner, size in kept.items()},
            {
                (str(priority), model): float(age)
                for (priority, model), age in zip(rotations, ages, strict=True)
                if age
            },
        )
    )
    registry.register(_Workers(workers, parse_counters(counters)))
    registry.register(_Waiting(image_steps, image_seconds))
    registry.register(_Counts({name.decode(): int(count) for name, count in counts.items()}, cards))
    registry.register(_Store(memory, webhooks))
    return generate_latest(registry) + generate_latest(own.for_scrape())


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


class _Jobs(Collector):
    """The jobs that have not ended, as one scrape found them."""

    def __init__(
        self,
        jobs: Mapping[str, int],
        owners: Mapping[str, float],
        kept_bytes: Mapping[str, float],
        ages: Mapping[tuple[str, str], float],
    ) -> None:
        self._jobs = jobs
        self._owners = owners
        self._kept_bytes = kept_bytes
        self._ages = ages

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Give each metric with its samples."""
        jobs = GaugeMetricFamily("ddpm_open_jobs", "Jobs that have not ended", labels=["priority"])
        for priority, count in self._jobs.items():
            jobs.add_metric([priority], count)
        yield jobs
        yield GaugeMetricFamily(
            "ddpm_open_image_steps",
            "Image-steps left to run, of all open jobs, each times its model's cost",
            sum(self._owners.values()),
        )
        owners = GaugeMetricFamily(
            "ddpm_owner_open_image_steps",
            "The same of one owner's open jobs",
            labels=["owner"],
        )
        for owner, image_steps in self._owners.items():
            owners.add_metric([owner], image_steps)
        yield owners
        kept = GaugeMetricFamily(
            "ddpm_owner_kept_bytes",
            "Bytes of one owner's images, those of open jobs as what they may take",
            labels=["owner"],
        )
        for owner, size in self._kept_bytes.items():
            kept.add_metric([owner], size)
        yield kept
        ages = GaugeMetricFamily(
            "ddpm_oldest_queued_job_seconds",
            "Seconds since the oldest job was posted that no worker has taken",
            labels=["model", "priority"],
        )
        for (priority, model), age in self._ages.items():
            ages.add_metric([model, priority], age)
        yield ages


class _Workers(Collector):
    """The living workers, as one scrape found them."""

    def __init__(
        self, workers: Iterable[WorkerInfo], counters: Mapping[str, WorkerCounters]
    ) -> None:
        self._workers = list(workers)
        self._counters = counters
        self._labels = labels(self._workers)

    def collect(self) -> Iterator[Metric]:
        """Give each metric with its samples."""
        faulty = sum(1 for worker in self._workers if worker.fault)
        yield GaugeMetricFamily(
            "ddpm_workers", "Workers that take jobs", len(self._workers) - faulty
        )
        yield GaugeMetricFamily(
            "ddpm_workers_at_fault", "Workers that take no jobs, as /readyz tells why", faulty
        )
        yield from self._speeds()
        yield from self._work()
        yield from self._events()

    def _speeds(self) -> Iterator[Metric]:
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
        slowed = GaugeMetricFamily(
            "ddpm_worker_slowdown",
            "How many times as long as calibrated a step takes now",
            labels=["worker"],
        )
        model_info = GaugeMetricFamily(
            "ddpm_worker_model_info",
            "1 for each model of a worker; workers of one fingerprint draw the same bytes",
            labels=["worker", "model", "precision", "fingerprint"],
        )
        memory = GaugeMetricFamily(
            "ddpm_worker_models_memory_bytes",
            "Memory that the worker's models take",
            labels=["worker"],
        )
        bound = GaugeMetricFamily(
            "ddpm_worker_models_memory_max_bytes",
            "Memory that they may take together",
            labels=["worker"],
        )
        state = GaugeMetricFamily(
            "ddpm_worker_model_state",
            "1 for the state of each model of a worker: loaded, put_away, loading or unserved",
            labels=["worker", "model", "state"],
        )
        for worker in self._workers:
            label = self._labels[worker.name]
            memory.add_metric([label], worker.memory_bytes)
            bound.add_metric([label], worker.memory_bound_bytes)
            for name, of_model in _states(worker).items():
                state.add_metric([label, name, of_model], 1)
            rate.add_metric([label, worker.device], worker.image_steps_per_s)
            slowed.add_metric([label], worker.slowed)
            for name, model in worker.models.items():
                model_info.add_metric([label, name, model.precision, model.fingerprint], 1)
                for size, seconds in model.seconds.items():
                    step.add_metric([label, name, model.precision, str(size)], seconds)
        yield from (rate, step, slowed, model_info, memory, bound, state)

    def _work(self) -> Iterator[Metric]:
        """Give the batches that were stepped, by model."""
        image_steps = CounterMetricFamily(
            "ddpm_worker_image_steps",
            "Image-steps that the worker has run since its start",
            labels=["worker", "model"],
        )
        batches = SummaryMetricFamily(
            "ddpm_worker_batch_seconds",
            "Steps of a batch since the worker's start, and the seconds that they took",
            labels=["worker", "model"],
        )
        loads = SummaryMetricFamily(
            "ddpm_worker_model_load_seconds",
            "Loads of a model since the worker's start, and the seconds that they took",
            labels=["worker", "model"],
        )
        put_away = CounterMetricFamily(
            "ddpm_worker_models_put_away",
            "Times that a model gave its memory to another one",
            labels=["worker", "model"],
        )
        for worker in self._workers:
            counted = self._counters.get(worker.name, WorkerCounters())
            for model, count in counted.loads.items():
                label = [self._labels[worker.name], model]
                loads.add_metric(label, count, counted.load_s.get(model, 0.0))
                put_away.add_metric(label, counted.put_away.get(model, 0))
            for model, count in counted.image_steps.items():
                label = [self._labels[worker.name], model]
                image_steps.add_metric(label, count)
                batches.add_metric(
                    label, counted.steps.get(model, 0), counted.step_s.get(model, 0.0)
                )
        yield from (image_steps, batches, loads, put_away)

    def _events(self) -> Iterator[Metric]:
        for name, about, value in _WORKER_EVENTS:
            family = CounterMetricFamily(name, about, labels=["worker"])
            for worker in self._workers:
                if worker.name in self._counters:
                    label = self._labels[worker.name]
                    family.add_metric([label], value(self._counters[worker.name]))
            yield family


def _states(worker: WorkerInfo) -> dict[str, str]:
    """Return the state of each model of a worker, by name."""
    states = {name: model.state.replace(" ", "_") for name, model in worker.models.items()}
    states |= dict.fromkeys(worker.unserved, "unserved")
    return states | dict.fromkeys(worker.loading, "loading")


_WORKER_EVENTS: tuple[tuple[str, str, Callable[[WorkerCounters], int]], ...] = (
    ("ddpm_worker_rescues", "Shards continued from saved chains", lambda counted: counted.rescues),
    ("ddpm_worker_snapshots", "Shards whose chains were saved", lambda counted: counted.snapshots),
    (
        "ddpm_worker_store_errors",
        "Times that the results store did not do what the worker asked",
        lambda counted: counted.store_errors,
    ),
    (
        "ddpm_worker_redis_errors",
        "Times that Redis did not do what the worker asked",
        lambda counted: counted.redis_errors,
    ),
)


class _Counts(Collector):
    """What scripts count in Redis, `keys.COUNTS`."""

    def __init__(self, counts: Mapping[str, int], models: Iterable[str]) -> None:
        self._counts = dict(counts)
        self._models = models

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Give each metric with its samples."""
        jobs = CounterMetricFamily(
            "ddpm_jobs_ended",
            "Jobs that have ended, and the code of their error",
            labels=["state", "reason", "priority", "model"],
        )
        losses = CounterMetricFamily(
            "ddpm_shard_losses",
            "Shards whose worker was lost: requeued, failed, or dropped as they were none",
            labels=["outcome"],
        )
        webhooks = CounterMetricFamily(
            "ddpm_webhook_attempts",
            "Attempts at webhooks: delivered, retried later, or given up",
            labels=["outcome"],
        )
        families = {"job": (jobs, 3), "loss": (losses, 0), "webhook": (webhooks, 0)}
        # Prometheus cannot see that a series which begins with 1 has grown.
        begun = dict.fromkeys(_expected(self._models), 0)
        for name, count in (begun | self._counts).items():
            kind, _, values = name.partition(" ")
            family, blanks = families.get(kind, (None, 0))
            values_of = values.split(" ", blanks)
            if family and len(values_of) == blanks + 1:
                family.add_metric(values_of, count)
        yield from (jobs, losses, webhooks)


def _expected(models: Iterable[str]) -> Iterator[str]:
    """Yield the fields of `keys.COUNTS` that may appear."""
    yield from (f"loss {outcome}" for outcome in ("requeued", "failed", "dropped"))
    yield from (f"webhook {outcome}" for outcome in ("delivered", "retried", "given_up"))
    ends = ["finished -", "cancelled -", *(f"failed {reason}" for reason in _REASONS)]
    for model in models:
        for priority in Priority:
            yield from (f"job {end} {priority} {model}" for end in ends)


class _Store(Collector):
    """How full the job store is, and what waits in it beside jobs."""

    def __init__(self, memory: Mapping[str, int], webhooks: int) -> None:
        self._memory = memory
        self._webhooks = webhooks

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Give each metric with its samples."""
        yield GaugeMetricFamily(
            "ddpm_redis_memory_used_bytes",
            "Memory that the job store uses",
            self._memory["used_memory"],
        )
        yield GaugeMetricFamily(
            "ddpm_redis_memory_max_bytes",
            "Memory from which the job store refuses jobs; 0: none",
            self._memory.get("maxmemory", 0),
        )
        yield GaugeMetricFamily(
            "ddpm_webhooks_pending",
            "Webhooks of ended jobs that are neither delivered nor given up",
            self._webhooks,
        )
