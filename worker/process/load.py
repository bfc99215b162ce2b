"""Load of a worker, and the rule that decides what it takes next."""

from __future__ import annotations

import threading

from worker.jobs.domain import SHARD_IMAGES, Priority, Shard
from worker.process.shard_leases import Lease


def wanted_classes(
    capacity: int, interactive: int, bulk: int, low_water: int
) -> dict[Priority, int]:
    """Decide of which classes a worker would take another shard for one of its models.

    - Interactive shards are taken while there is room for one. Bulk shards are taken only to have
      `low_water` images at hand.
    - The first bulk shard has a place of its own, however many interactive shards wait. So the
      scheduler always has bulk work for its floor.
    - The later shards of a big job are left for other workers. After the first one there is still
      room for an interactive shard, unless the pool holds only one shard.

    Args:
        capacity: images that the model's pool holds.
        interactive: interactive images of the model that the worker holds.
        bulk: bulk images of the model that the worker holds.
        low_water: bulk images below which the worker takes more of them.

    Returns:
        The classes to take a shard of, each with the images that there is room for: 64 or more. An
        image that is taken of one class takes room of both.
    """
    holds_nothing = not interactive + bulk
    left = capacity - interactive - bulk - SHARD_IMAGES
    left_to_interactive = left if bulk else left - SHARD_IMAGES
    left_to_bulk = left - SHARD_IMAGES if bulk else left
    wanted = {}
    if left_to_interactive >= 0 or holds_nothing:
        wanted[Priority.INTERACTIVE] = SHARD_IMAGES + max(0, left_to_interactive)
    if (left_to_bulk >= 0 or holds_nothing) and bulk < low_water:
        wanted[Priority.BULK] = SHARD_IMAGES + max(
            0, min(left_to_bulk, low_water - bulk - SHARD_IMAGES)
        )
    return wanted


class WorkerLoad:
    """Images that the worker holds, by model and class.

    The intake and the loop write it, from two threads.

    Attributes:
        changed: is set when something may be taken that could not be taken before.
        suspect: the lease of a suspect. While there is one the worker takes no other shard, so that
            its loss is nobody else's.
    """

    def __init__(self) -> None:
        self._images: dict[tuple[str, Priority], int] = {}
        self._lock = threading.Lock()
        self.changed = threading.Event()
        self.suspect: Lease | None = None

    def add(self, shard: Shard, images: int) -> None:
        """Count images of the shard that come, or with a minus those that go."""
        key = (shard.recipe.model, shard.priority)
        with self._lock:
            left = self._images.pop(key, 0) + images
            if left:
                self._images[key] = left
        self.changed.set()

    def clear_suspect(self, lease: Lease) -> None:
        """Forget the lease as a suspect: it is one no more, or is no longer here."""
        if self.suspect is lease:
            self.suspect = None
            self.changed.set()

    def images(self, model: str, priority: Priority) -> int:
        """Count the images of one class that the worker holds of a model."""
        with self._lock:
            return self._images.get((model, priority), 0)
