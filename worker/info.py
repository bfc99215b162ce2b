"""What a worker says of itself, and how fast it says it is. Knows no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from worker.contract import Precision


@dataclass(frozen=True, slots=True)
class Pace:
    """Of one model: a step of n images, `largest` at most, takes `base_s` + n `image_s`."""

    base_s: float
    image_s: float
    largest: int

    @classmethod
    def of(cls, seconds: Mapping[int, float], slowed: float = 1.0) -> Pace:
        """From the seconds of a step by batch size: the line through the smallest and the one that gives the most."""
        small, best = min(seconds), max(seconds, key=lambda size: size / seconds[size])
        image_s = max(0.0, (seconds[best] - seconds[small]) / (best - small)) if best > small else 0.0
        return cls(slowed * max(0.0, seconds[small] - small * image_s), slowed * image_s, best)

    def step_s(self, images: float) -> float:
        return self.base_s + min(images, self.largest) * self.image_s

    @property
    def image_steps_per_s(self) -> float:
        return self.largest / self.step_s(self.largest)


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """Said every few seconds. `image_steps_per_s` is that of full batches. Times in seconds since the epoch."""

    name: str
    models: tuple[str, ...]
    device: str
    precision: Precision
    buckets: tuple[int, ...]
    image_steps_per_s: float
    until: float
    paces: Mapping[str, Pace] = field(default_factory=dict)  # by model

    @classmethod
    def from_json(cls, text: bytes) -> WorkerInfo:
        fields = json.loads(text)
        return cls(**fields | {"paces": {model: Pace(**pace) for model, pace in fields.get("paces", {}).items()}})

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def pace(self, model: str) -> Pace:
        """Of a worker that says its rate only, one image at a time at that rate."""
        return self.paces.get(model) or Pace(0.0, 1 / self.image_steps_per_s, 1)
