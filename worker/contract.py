"""What the API and the workers agree on: names of keys and fields of a job. Knows no torch.

A job is four keys, all gone after their TTL:

    ddpm:job:<id>         hash: what was asked for, state, times, error; `p<k>` is shard k's progress, `k<k>` what of it is saved
    ddpm:job:<id>:sha256  hash: image index -> sha256 of its PNG, one field an image that is finished
    ddpm:job:<id>:png     hash: image index -> PNG, unless the worker has a results store (worker/store.py)
    ddpm:job:<id>:chains  hash: shard -> its unfinished chains as a worker last saved them; empty: they lie in the results
                          store. Gone when the job ends

While clients look at its unfinished images it has keys that live for half a second: `preview_key`, `preview_asked_key`.

A job is finished when every image has its hash: there is no counter that a crash between two writes could leave wrong.
A job is running while a worker holds a shard of it; when the last of them is lost or given back, it is queued again
(worker/scripts.py). What a late worker still has to say of it is heard all the same: its images have the same bytes.
Every change of state is one script in transitions.py, published on `CHANGES` as "<id> <state>".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from hashlib import sha256
from typing import Any, Literal

SHARD_IMAGES = 64
MAX_COUNT = 1024
MAX_SEED = 2**53 - 1  # JSON numbers are exact up to here
MAX_INDEX = 2**32 - 1  # one word of the noise's counter
UNFINISHED_TTL_S = 7 * 24 * 3600  # nothing waits or runs this long; keys of a job that ends are given their own TTL
FLOOR = 8  # while they wait, bulk chains have one place in this many beside interactive ones
HOLDS = 2  # a worker takes bulk work until it has this many of its largest batches at hand
STRETCH = 2.5  # bulk chains join an interactive step up to this many times what one chain by itself would take
RECORD_TTL_S = 7 * 24 * 3600  # a job's record outlives its images by this, so that they are known to have expired

LEFT = "ddpm:left"  # hash: open job -> "<image-steps left to run> <count> <steps> <model> <owner>"
LOAD = "ddpm:load"  # hash: owner -> image-steps left of all its open jobs. Both empty themselves
CHANGES = "ddpm:changes"
PREVIEWS = "ddpm:previews"  # channel: "<job> <index>" of an image that somebody would like to see as it is
PREVIEW_LIVES_MS = 500
EXPIRING = "ddpm:expiring"  # sorted set: job -> when what the results store holds of it is to be removed; it empties itself
WEBHOOKS = "ddpm:webhooks"  # sorted set: job that has ended -> when its webhook is to be sent next; it empties itself
WORKERS = "ddpm:workers"  # hash: worker name -> when it lapses, and JSON of WorkerInfo (worker/roster.py)

# For scripts: the Lua function `now()`, in seconds since the epoch. What hosts compare is the job store's time: theirs differ.
NOW = """
local function now() local time = redis.call('TIME'); return time[1] + time[2] / 1000000 end
"""

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


def job_key(job: str) -> str:
    return f"ddpm:job:{job}"


def sha256_key(job: str) -> str:
    return f"ddpm:job:{job}:sha256"


def png_key(job: str) -> str:
    return f"ddpm:job:{job}:png"


def chains_key(job: str) -> str:
    return f"ddpm:job:{job}:chains"


def preview_key(job: str, index: int | str) -> str:
    """String: a PNG of x_0_hat. It goes by itself at once."""
    return f"ddpm:job:{job}:preview:{index}"


def preview_asked_key(job: str, index: int) -> str:
    """String: while it is there, nobody else asks the workers for this preview."""
    return f"{preview_key(job, index)}:asked"


def owner_key(owner: str) -> str:
    """Sorted set of an owner's jobs by time of creation."""
    return f"ddpm:jobs:{owner}"


def open_key(priority: str) -> str:
    """Sorted set of the jobs that have not ended, by time of creation."""
    return f"ddpm:open:{priority}"


def idempotency_key(owner: str, key: str) -> str:
    """String: "<job> <what was asked for, hashed>", for as long as the job's record. Any characters may be in `key`."""
    return f"ddpm:idempotency:{owner}:{sha256(key.encode()).hexdigest()}"


def queue_name(priority: str, model: str) -> str:
    return f"{priority}:{model}"


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


def shards_of(job: str, recipe: Recipe, start: int, count: int, owner: str, priority: str) -> Iterator[Shard]:
    for number in range(shard_count(count)):
        first = start + number * SHARD_IMAGES
        yield Shard(job, number, first, min(SHARD_IMAGES, start + count - first), owner, priority, recipe)


def shard_count(count: int) -> int:
    return math.ceil(count / SHARD_IMAGES)


def progress_field(shard: int) -> str:
    """Field of the job's hash; its value is "<step of the least advanced image>,<image-steps done>"."""
    return f"p{shard}"
