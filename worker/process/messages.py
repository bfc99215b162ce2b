"""Messages from a worker's other threads to the one that steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue

from worker.process.shard_leases import Lease


@dataclass(frozen=True, slots=True)
class ShardTaken:
    """The intake took a shard.

    Attributes:
        lease: this worker's hold on the shard.
        indices: the images of the shard that are not finished yet.
        saved: packed chains that another worker saved, the shard's among them; None without any.
    """

    lease: Lease
    indices: list[int]
    saved: bytes | None


@dataclass(frozen=True, slots=True)
class JobEnded:
    """A job has ended or is gone. The loop drops all chains of it."""

    job: str


@dataclass(frozen=True, slots=True)
class LeaseLost:
    """A lease is no longer ours. If the shard came back under another lease, that one stays."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class WorkerIdle:
    """Another worker has room, and nothing waits in these rotations."""

    rotations: frozenset[str]


@dataclass(frozen=True, slots=True)
class ModelRead:
    """A model's weights were read, and it is to be served.

    Attributes:
        name: the model's.
        place: makes it ready to step. It calls what it is given between two steps that it measures.
    """

    name: str
    place: Callable[[Callable[[], None]], None]


@dataclass(frozen=True, slots=True)
class ModelLeaves:
    """A model is to give its memory to another one.

    Attributes:
        key: its key among the served models.
        is_urgent: whether shards that run go back, too, once their chains are saved.
    """

    key: str
    is_urgent: bool = False


Message = ShardTaken | JobEnded | LeaseLost | WorkerIdle | ModelRead | ModelLeaves
MessageQueue = SimpleQueue[Message]
