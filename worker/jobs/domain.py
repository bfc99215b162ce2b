"""What a job is: its recipe, its shards, its states. Neither torch nor Redis is used here."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, Literal

from worker.jobs.keys import queue_name, rotation_name

SHARD_IMAGES = 64
MAX_COUNT = 1024
MAX_SEED = 2**53 - 1  # JSON numbers are exact up to here
MAX_INDEX = 2**32 - 1  # one word of the noise's counter
# Of a job, whatever its count.
MAX_START = MAX_INDEX + 1 - MAX_COUNT

# The weight of guidance that changes nothing, and costs one pass of the network.
NO_GUIDANCE = 1.0
MOST_GUIDANCE = 100.0

# Stands for every owner where a question names one. No key has this name.
ANY_OWNER = "*"

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


def drawn_label(seed: int, index: int, classes: int) -> int:
    """Draw the label of an image whose job names none: it depends on nothing else.

    It is the SHA-256 of `label SEED INDEX`, the first 8 bytes as a big-endian number, modulo the
    number of classes.
    """
    digest = hashlib.sha256(f"label {seed} {index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % classes


def labels_text(labels: Sequence[int]) -> str:
    """Write labels as a recipe has them: one if all are the same."""
    return ",".join(map(str, labels if len(set(labels)) > 1 else labels[:1]))


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that an image's bytes depend on except its index.

    `weights` is the sha256 of the safetensors file. `residual_variance` is the sha256 of the
    estimate behind the analytic variance, and empty for other variances. `labels` are numbers of
    classes with commas between them: one for all images or one for each, and none for a network
    without classes. `guidance` is w of classifier-free guidance; 1 is none.
    """

    model: str
    weights: str
    sampler: str
    steps: int
    variance: str
    eta: float
    seed: int
    residual_variance: str = ""
    labels: str = ""
    guidance: float = NO_GUIDANCE

    @property
    def fields(self) -> dict[str, Any]:
        """The fields that are not empty, by name.

        A version that does not know one of them leaves the shard to those that do.
        """
        fields = {name: value for name in self.__slots__ if (value := getattr(self, name)) != ""}
        if self.guidance == NO_GUIDANCE:
            del fields["guidance"]
        return fields

    @property
    def passes(self) -> int:
        """The network's passes for each image: one a step, or two where it is guided."""
        return self.steps * (1 if self.guidance == NO_GUIDANCE else 2)

    def labels_of(self, count: int) -> list[int] | list[None]:
        """Return the label of each of `count` images; None where the network has no classes."""
        if not self.labels:
            return [None] * count
        labels = [int(label) for label in self.labels.split(",")]
        return labels * count if len(labels) == 1 else labels

    def of_images(self, places: range) -> Recipe:
        """Return the recipe of some of the images, by their places from 0."""
        if "," not in self.labels:
            return self
        labels = self.labels.split(",")
        return replace(self, labels=labels_text([int(labels[place]) for place in places]))

    @classmethod
    def from_text(cls, text: Mapping[str, str]) -> Recipe:
        """Read the fields among those of a job's record.

        Raises:
            KeyError: one is missing.
            ValueError: one is no number.
        """
        return cls(
            model=text["model"],
            weights=text["weights"],
            sampler=text["sampler"],
            steps=int(text["steps"]),
            variance=text["variance"],
            eta=float(text["eta"]),
            seed=int(text["seed"]),
            residual_variance=text.get("residual_variance", ""),
            labels=text.get("labels", ""),
            guidance=float(text.get("guidance", NO_GUIDANCE)),
        )

    def request(self, index: int) -> dict[str, Any]:
        """Return the body of a `POST /v1/jobs` that makes the image of this index again.

        The highest indices come as the last of several images, since `start` ends below them.
        The recipe is of this image, or of images that share a label.
        """
        of_classes: dict[str, Any] = {}
        if self.labels:
            of_classes["label"] = int(self.labels)
        if self.guidance != NO_GUIDANCE:
            of_classes["guidance"] = self.guidance
        options: dict[str, dict[str, Any]] = {
            "ddpm": {"variance": self.variance},
            "ddim": {"eta": self.eta},
        }
        start = min(index, MAX_START)
        return {
            "model": self.model,
            "sampler": self.sampler,
            "steps": self.steps,
            "seed": self.seed,
            "start": start,
            "count": index - start + 1,
            **options.get(self.sampler, {}),
            **of_classes,
        }


@dataclass(frozen=True, slots=True)
class Origin:
    """The request that posted a job: its id, and its W3C `traceparent` if it has one.

    It is no part of the job. Log lines and traces show it, and fields of the job's record and of
    its shards hold it. Jobs that were posted by earlier versions have none.
    """

    request_id: str = ""
    traceparent: str = ""

    @property
    def fields(self) -> dict[str, str]:
        """The fields that are not empty, by name, as `from_hash` reads them."""
        return {name: value for name, value in asdict(self).items() if value}

    @property
    def log_fields(self) -> dict[str, str]:
        """The fields of log lines: the id of the request, and of the trace."""
        fields = {"request_id": self.request_id} if self.request_id else {}
        if self.traceparent:
            fields["trace_id"] = self.traceparent.split("-")[1]
        return fields

    @classmethod
    def from_hash(cls, fields: Mapping[bytes, bytes]) -> Origin:
        """Read the fields of a hash, whatever else it holds."""
        return cls(
            fields.get(b"request_id", b"").decode(), fields.get(b"traceparent", b"").decode()
        )


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

    def recipe_of(self, index: int) -> Recipe:
        """Return the recipe of one image alone."""
        return self.recipe.of_images(range(index - self.first, index - self.first + 1))

    def to_json(self) -> dict[str, Any]:
        """Return the fields that `from_json` reads."""
        # Not asdict(), which copies each value and takes ten times as long.
        return {name: getattr(self, name) for name in self.__slots__} | {
            "recipe": self.recipe.fields
        }

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
        places = range(first - start, first - start + images)
        yield Shard(job, number, first, images, owner, priority, recipe.of_images(places))


def shard_count(count: int) -> int:
    """Return how many shards a job of `count` images has."""
    return math.ceil(count / SHARD_IMAGES)
