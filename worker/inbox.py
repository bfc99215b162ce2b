"""What the worker's other threads tell the one that steps."""

from __future__ import annotations

from dataclasses import dataclass
from queue import SimpleQueue

from worker.rq_worker import Lease


@dataclass(frozen=True, slots=True)
class Taken:
    """A shard to run, the images of it that are not finished yet, and its chains as another worker saved them."""

    lease: Lease
    indices: list[int]
    saved: bytes | None


@dataclass(frozen=True, slots=True)
class Ended:
    """A job that has ended or is gone: whatever runs of it is to leave."""

    job: str


@dataclass(frozen=True, slots=True)
class Lost:
    """A lease that is ours no longer. Its shard may be here again under another lease, which stays."""

    lease: Lease


Inbox = SimpleQueue[Taken | Ended | Lost]
