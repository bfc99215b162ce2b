"""What a worker holds, by model, class and owner."""

from __future__ import annotations

import threading
from collections import Counter

from worker.jobs.domain import Priority, Shard
from worker.process.shard_leases import Lease


class WorkerLoad:
    """Images that the worker holds, by model, priority and owner; written by the intake and by the loop."""

    def __init__(self) -> None:
        self._images: dict[tuple[str, Priority, str], int] = {}
        self._lock = threading.Lock()
        self.changed = threading.Event()
        self.suspect: Lease | None = (
            None  # while one is here no other shard is taken, so that its loss is nobody else's
        )

    def add(self, shard: Shard, images: int) -> None:
        """As they come, and with a minus as they go."""
        key = (shard.recipe.model, shard.priority, shard.owner)
        with self._lock:
            left = self._images.pop(key, 0) + images
            if left:
                self._images[key] = left
        self.changed.set()

    def clear(self, lease: Lease) -> None:
        """It is a suspect no more, or here no more."""
        if self.suspect is lease:
            self.suspect = None
            self.changed.set()

    def of(self, model: str, *priorities: Priority) -> int:
        with self._lock:
            return sum(
                images
                for (name, priority, _), images in self._images.items()
                if name == model and priority in priorities
            )

    def by_owner(self) -> dict[str, int]:
        """Interactive ones."""
        images = Counter[str]()
        with self._lock:
            for (_, priority, owner), count in self._images.items():
                if priority is Priority.INTERACTIVE:
                    images[owner] += count
        return images
