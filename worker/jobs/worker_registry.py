"""Who works: what workers publish of themselves, how fast they are, and who is alive.

An entry of `keys.WORKERS` is the time when it lapses, and JSON. The job store's clock decides
whether it has lapsed, so the clocks of hosts need not agree.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Literal

from pydantic import TypeAdapter, ValidationError
from redis import Redis, RedisError

from worker.jobs.domain import Precision
from worker.jobs.keys import STARTING
from worker.jobs.scripts import load
from worker.logs import event

log = logging.getLogger(__name__)

# of a model that a worker has run
ModelState = Literal["loaded", "put away"]

READ_WORKERS = load("read_workers")
ANNOUNCE_WORKER = load("announce_worker")
# A worker that was killed meanwhile is taken for one that starts for so long.
_START_LIVES_S = 30
_SAID_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class Pace:
    """How long one model's steps take: n images take `base_s` + n `image_s`, up to `largest`."""

    base_s: float
    image_s: float
    largest: int

    @classmethod
    def fit(cls, seconds: Mapping[int, float], slowed: float = 1.0) -> Pace:
        """Lay a line through the smallest batch and the one of the highest throughput.

        Args:
            seconds: of a step, by batch size.
            slowed: how many times as long as that a step takes now.
        """
        small = min(seconds)
        best = max(seconds, key=lambda size: (size / seconds[size], size))
        image_s = 0.0
        if best > small:
            image_s = max(0.0, (seconds[best] - seconds[small]) / (best - small))
        base_s = max(0.0, seconds[small] - small * image_s)
        return cls(slowed * base_s, slowed * image_s, best)

    def step_s(self, images: float) -> float:
        """Return the seconds of a step of so many images."""
        return self.base_s + min(images, self.largest) * self.image_s

    @property
    def image_steps_per_s(self) -> float:
        """The throughput of full batches."""
        return self.largest / self.step_s(self.largest)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """How a worker runs a model now.

    `kernels` says whose they are. `threads` is the number of CPU threads, 0 on other devices.
    `seconds` of a step by batch size are what calibration found for that number of threads.
    `fingerprint` is the hash of the bits of some chains, and empty from a worker that is too old to
    have one. `state` is `put away` if it is to be loaded again before its next step. `weights` is
    the sha256 of its weights, and empty from a worker that does not say it.
    """

    precision: Precision
    kernels: str
    threads: int
    seconds: Mapping[int, float]
    fingerprint: str = ""
    state: ModelState = "loaded"
    weights: str = ""


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """What a worker publishes of itself every few seconds.

    `slowed` is how many times as long as calibrated its steps take now. `fault` says why it takes
    no jobs, and is empty if it does. `label` is its name in metrics and logs, which a restart does
    not change, as it changes `name`. `loading` names the models that it is loading. `unserved` says
    of those that it cannot load why. `memory_bytes` is what its models take, `memory_bound_bytes`
    what they may take; 0 from a worker that does not say it.
    """

    name: str
    device: str
    models: Mapping[str, ModelInfo]
    slowed: float
    fault: str = ""
    label: str = ""
    loading: tuple[str, ...] = ()
    unserved: Mapping[str, str] = field(default_factory=dict)
    memory_bytes: int = 0
    memory_bound_bytes: int = 0

    def to_json(self) -> str:
        """Return what `parse_workers` reads."""
        return json.dumps(asdict(self))

    def differences(self, other: WorkerInfo) -> Iterator[str]:
        """Yield each model that both run to different bits, with what runs it there and here."""
        for name in sorted(self.models.keys() & other.models.keys()):
            if self._has_other_bits(name, other):
                there, here = other.describe(name), self.describe(name)
                yield f"{name} in {there}, this one in {here}"

    def _has_other_bits(self, model: str, other: WorkerInfo) -> bool:
        """Compare fingerprints, or where one is missing what should decide them."""
        mine, theirs = self.models[model], other.models[model]
        # one of them has not taken up new weights yet
        if mine.weights and theirs.weights and mine.weights != theirs.weights:
            return False
        if mine.fingerprint and theirs.fingerprint:
            return mine.fingerprint != theirs.fingerprint
        return self._make(model) != other._make(model)

    def _make(self, model: str) -> str:
        served = self.models[model]
        return f"{served.precision} on {self.device.partition(':')[0]} by {served.kernels}"

    def describe(self, model: str) -> str:
        """Return what decides the last bits of a model's images, and their fingerprint."""
        fingerprint = self.models[model].fingerprint
        return self._make(model) + (f" (fingerprint {fingerprint})" if fingerprint else "")

    def pace(self, model: str) -> Pace:
        """Return how fast it runs a model now."""
        return Pace.fit(self.models[model].seconds, self.slowed)

    @property
    def image_steps_per_s(self) -> float:
        """The throughput of full batches, of the model that it runs fastest."""
        return max((self.pace(model).image_steps_per_s for model in self.models), default=0.0)


@dataclass(slots=True)
class WorkerCounters:
    """What a worker has done since its start. It publishes them with its heartbeat.

    They are not in `WorkerInfo`, which is read at each poll of a job's status.

    Attributes:
        image_steps: by model, images times the steps that they took.
        steps: by model, each of which was one batch.
        step_s: by model, the seconds that those took.
        rescues: shards that were continued from saved chains.
        snapshots: shards whose chains were saved.
        store_errors: times that the results store did not do what was asked.
        redis_errors: times that Redis did not.
        loads: by model, how often it was loaded.
        load_s: by model, the seconds that this took.
        put_away: by model, how often it gave its memory to another one.
    """

    image_steps: dict[str, int] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    step_s: dict[str, float] = field(default_factory=dict)
    rescues: int = 0
    snapshots: int = 0
    store_errors: int = 0
    redis_errors: int = 0
    loads: dict[str, int] = field(default_factory=dict)
    load_s: dict[str, float] = field(default_factory=dict)
    put_away: dict[str, int] = field(default_factory=dict)

    def loaded(self, model: str, seconds: float) -> None:
        """Count a model that was loaded."""
        self.loads[model] = self.loads.get(model, 0) + 1
        self.load_s[model] = self.load_s.get(model, 0.0) + seconds

    def stepped(self, model: str, images: int, seconds: float) -> None:
        """Count a step of a batch."""
        self.image_steps[model] = self.image_steps.get(model, 0) + images
        self.steps[model] = self.steps.get(model, 0) + 1
        self.step_s[model] = self.step_s.get(model, 0.0) + seconds

    def to_json(self) -> str:
        """Return what `parse_counters` reads. Any thread may call this."""
        # A copy is made at once. The dictionaries may get another model while they are written.
        copy = replace(
            self,
            image_steps=dict(self.image_steps),
            steps=dict(self.steps),
            step_s=dict(self.step_s),
            loads=dict(self.loads),
            load_s=dict(self.load_s),
            put_away=dict(self.put_away),
        )
        return json.dumps(asdict(copy))


@contextmanager
def starting(redis: Redis) -> Iterator[None]:
    """Have the job store know, while the block runs, that a worker starts.

    A thread says so again and again, since the block may compute for minutes. Where Redis is away
    nobody knows.
    """
    over = threading.Event()

    def say() -> None:
        while not over.is_set():
            with suppress(RedisError):
                redis.set(STARTING, 1, ex=_START_LIVES_S)
            over.wait(_SAID_EVERY_S)

    threading.Thread(target=say, name="starting", daemon=True).start()
    try:
        yield
    finally:
        over.set()


_WORKER = TypeAdapter(WorkerInfo)
_COUNTERS = TypeAdapter(WorkerCounters)


def parse_counters(entries: Mapping[bytes, bytes]) -> dict[str, WorkerCounters]:
    """Parse the hash `WORKER_COUNTERS` by the workers' names, as far as this version can."""
    parsed = {}
    for name, entry in entries.items():
        with suppress(ValidationError):
            parsed[name.decode()] = _COUNTERS.validate_json(entry)
    return parsed


def labels(workers: Iterable[WorkerInfo]) -> dict[str, str]:
    """Return each worker's label by its name. Of two with one label, the second gets a number."""
    found: dict[str, str] = {}
    seen: Counter[str] = Counter()
    for worker in workers:
        label = worker.label or worker.name
        seen[label] += 1
        found[worker.name] = label if seen[label] == 1 else f"{label}-{seen[label]}"
    return found


def parse_workers(infos: Iterable[bytes], *, with_faulty: bool = False) -> list[WorkerInfo]:
    """Parse what `READ_WORKERS` and `ANNOUNCE_WORKER` return, and sort it by name.

    Workers that this version does not understand are left out. While a service is upgraded,
    workers of two versions run. So are those that take no jobs, unless `with_faulty`.
    """
    parsed = (info for info in map(_parse, infos) if info and (with_faulty or not info.fault))
    return sorted(parsed, key=lambda info: info.name)


@lru_cache(maxsize=256)
def _parse(info: bytes) -> WorkerInfo | None:
    """Parse one entry. Thousands of polls read each before the worker publishes the next."""
    try:
        return _WORKER.validate_json(info)
    except ValidationError:
        log.warning(
            "a worker of another version is not counted, "
            "as what it says of itself is not understood: %.200s",
            info.decode(),
            extra=event("worker.not_understood"),
        )
        return None
