"""What a job is: its recipe, its shards, its states. Neither torch nor Redis is used here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Literal

from worker.jobs.keys import queue_name, rotation_name

SHARD_IMAGES = 64
MAX_COUNT = 1024
MAX_SEED = 2**53 - 1  # JSON numbers are exact up to here
MAX_INDEX = 2**32 - 1  # one word of the noise's counter

# The precision of a network's weights and activations; chains are float32 always.
Precision = Literal["fp32", "bf16"]


# The two enumerations have no docstrings, which would become a part of the OpenAPI document.
# Where a job is in its life. A docstring of these two would stand in the OpenAPI document.
class State(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """True if the job has ended: no state follows."""
        return self not in (State.QUEUED, State.RUNNING)


# Which queue a job's shards wait in.
class Priority(StrEnum):
    INTERACTIVE = "interactive"
    BULK = "bulk"


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that an image's bytes depend on except its index.

    `weights` is the sha256 of the safetensors file. `residual_variance` is the sha256 of the
    estimate behind the analytic variance, and empty for other variances.
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
        """The fields that are not empty, by name."""
        return {name: value for name, value in asdict(self).items() if value != ""}


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of a job: at most SHARD_IMAGES consecutive images, which an RQ job carries as JSON."""

    job: str
    number: int
    first: int
    count: int
    owner: str
    job_priority: str
    recipe: Recipe

    @property
    def id(self) -> str:
        """The id of the RQ job: unique, and names the job that the shard is of."""
        return f"{self.job}-{self.number}"

    @property
    def priority(self) -> Priority:
        """The job's priority for its first shard, bulk for the others.

        A big interactive job starts at once, and the rest of it is in nobody's way.
        """
        return Priority(self.job_priority) if self.number == 0 else Priority.BULK

    @property
    def queue(self) -> str:
        """The name of the queue that the shard waits in."""
        return queue_name(self.priority, self.recipe.model, self.owner)

    @property
    def rotation(self) -> str:
        """The name of the rotation in which its owner waits for a turn."""
        return rotation_name(self.priority, self.recipe.model)

    @property
    def indices(self) -> range:
        """The indices of its images."""
        return range(self.first, self.first + self.count)

    def to_json(self) -> dict[str, Any]:
        """Return the fields that `from_json` reads."""
        return {**asdict(self), "recipe": self.recipe.fields}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Shard:
        """Read what `to_json` returned.

        Raises:
            KeyError: there is no recipe.
            TypeError: the fields are those of another version.
        """
        return cls(**{**fields, "recipe": Recipe(**fields["recipe"])})


def job_of(shard_id: str) -> str:
    """Return the id of the job that a shard is of."""
    return shard_id.rpartition("-")[0]


def shards_of(
    job: str, recipe: Recipe, start: int, count: int, owner: str, priority: str
) -> Iterator[Shard]:
    """Cut a job of `count` images from index `start` into shards."""
    for number in range(shard_count(count)):
        first = start + number * SHARD_IMAGES
        images = min(SHARD_IMAGES, start + count - first)
        yield Shard(job, number, first, images, owner, priority, recipe)


def shard_count(count: int) -> int:
    """Return how many shards a job of `count` images has."""
    return math.ceil(count / SHARD_IMAGES)
