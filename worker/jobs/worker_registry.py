"""Who works: what workers publish of themselves, how fast they are, and who is alive.

An entry of `keys.WORKERS` is the time when it lapses, and JSON. The job store's clock decides
whether it has lapsed, so the clocks of hosts need not agree.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache

from pydantic import TypeAdapter, ValidationError

from worker.jobs.domain import Precision
from worker.jobs.scripts import load

log = logging.getLogger(__name__)

READ_WORKERS = load("read_workers")
ANNOUNCE_WORKER = load("announce_worker")


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

    `kernels` says whose they are, which decides the last bits. `threads` is the number of CPU
    threads, 0 on other devices. `seconds` of a step by batch size are what calibration found for
    that number of threads.
    """

    precision: Precision
    kernels: str
    threads: int
    seconds: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """What a worker publishes of itself every few seconds.

    `slowed` is how many times as long as calibrated its steps take now.
    """

    name: str
    device: str
    models: Mapping[str, ModelInfo]
    slowed: float

    def to_json(self) -> str:
        """Return what `parse_workers` reads."""
        return json.dumps(asdict(self))

    def differences(self, other: WorkerInfo) -> Iterator[str]:
        """Yield each model that both run to different bits, with what runs it there and here."""
        for name in sorted(self.models.keys() & other.models.keys()):
            there, here = other.describe(name), self.describe(name)
            if there != here:
                yield f"{name} in {there}, this one in {here}"

    def describe(self, model: str) -> str:
        """Return what decides the last bits of a model's images."""
        served = self.models[model]
        return f"{served.precision} on {self.device.partition(':')[0]} by {served.kernels}"

    def pace(self, model: str) -> Pace:
        """Return how fast it runs a model now."""
        return Pace.fit(self.models[model].seconds, self.slowed)

    @property
    def image_steps_per_s(self) -> float:
        """The throughput of full batches, of the model that it runs fastest."""
        return max(self.pace(model).image_steps_per_s for model in self.models)


_WORKER = TypeAdapter(WorkerInfo)


def parse_workers(infos: Iterable[bytes]) -> list[WorkerInfo]:
    """Parse what `READ_WORKERS` and `ANNOUNCE_WORKER` return, and sort it by name.

    Workers that this version does not understand are left out. While a service is upgraded,
    workers of two versions run.
    """
    parsed = (_parse(info) for info in infos)
    return sorted((info for info in parsed if info), key=lambda info: info.name)


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
        )
        return None
