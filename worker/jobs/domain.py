"""What a job is: its recipe, its shards, its states. Knows no torch and no Redis."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Literal

from worker.jobs.keys import queue_name

SHARD_IMAGES = 64
MAX_COUNT = 1024
MAX_SEED = 2**53 - 1  # JSON numbers are exact up to here
MAX_INDEX = 2**32 - 1  # one word of the noise's counter

# Of a network's weights and activations; chains are float32 always.
Precision = Literal["fp32", "bf16"]


class State(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        return self not in (State.QUEUED, State.RUNNING)


class Priority(StrEnum):
    INTERACTIVE = "interactive"
    BULK = "bulk"


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that an image's bytes depend on, its index apart. `weights` is the sha256 of the safetensors file.

    `residual_variance`: sha256 of the estimate that the analytic variance is made of; empty for others.
    """

    model: str
    weights: str
    sampler: str
    steps: int
    variance: str
    eta: float
    seed: int
    residual_variance: str = ""

    @property
    def fields(self) -> dict[str, Any]:
        """By name, without what is empty."""
        return {name: value for name, value in asdict(self).items() if value != ""}


@dataclass(frozen=True, slots=True)
class Shard:
    """At most SHARD_IMAGES consecutive images of a job; what one RQ job carries, as JSON."""

    job: str
    number: int
    first: int
    count: int
    owner: str
    job_priority: str
    recipe: Recipe

    @property
    def id(self) -> str:
        return f"{self.job}-{self.number}"

    @property
    def priority(self) -> Priority:
        """Only a job's first shard is interactive: a big job starts at once, and the rest of it is in nobody's way."""
        return Priority(self.job_priority) if self.number == 0 else Priority.BULK

    @property
    def queue(self) -> str:
        return queue_name(self.priority, self.recipe.model)

    @property
    def indices(self) -> range:
        return range(self.first, self.first + self.count)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "recipe": self.recipe.fields}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Shard:
        """Raises TypeError for fields of another version."""
        return cls(**{**fields, "recipe": Recipe(**fields["recipe"])})


def job_of(shard_id: str) -> str:
    return shard_id.rpartition("-")[0]


def shards_of(
    job: str, recipe: Recipe, start: int, count: int, owner: str, priority: str
) -> Iterator[Shard]:
    for number in range(shard_count(count)):
        first = start + number * SHARD_IMAGES
        yield Shard(
            job, number, first, min(SHARD_IMAGES, start + count - first), owner, priority, recipe
        )


def shard_count(count: int) -> int:
    return math.ceil(count / SHARD_IMAGES)
