"""What the worker's other threads tell the one that steps."""

from __future__ import annotations

from dataclasses import dataclass
from queue import SimpleQueue

from worker.process.shard_leases import Lease


@dataclass(frozen=True, slots=True)
class ShardTaken:
    """A shard to run, the images of it that are not finished yet, and its chains as another worker saved them."""

    lease: Lease
    indices: list[int]
    saved: bytes | None


@dataclass(frozen=True, slots=True)
class JobEnded:
    """A job that has ended or is gone: whatever runs of it is to leave."""

    job: str


@dataclass(frozen=True, slots=True)
class LeaseLost:
    """A lease that is ours no longer. Its shard may be here again under another lease, which stays."""

    lease: Lease


MessageQueue = SimpleQueue[ShardTaken | JobEnded | LeaseLost]
