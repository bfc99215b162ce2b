"""Messages from a worker's other threads to the one that steps."""

from __future__ import annotations

from dataclasses import dataclass
from queue import SimpleQueue

from worker.process.shard_leases import Lease


@dataclass(frozen=True, slots=True)
class ShardTaken:
    """The intake took a shard.

    Attributes:
        lease: this worker's hold on the shard.
        indices: the images of the shard that are not finished yet.
        saved: the shard's chains as another worker saved them, packed; None without any.
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


Message = ShardTaken | JobEnded | LeaseLost
MessageQueue = SimpleQueue[Message]
