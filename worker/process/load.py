"""Load of a worker, and the rule that decides what it takes next."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from queue import SimpleQueue

from worker.jobs.domain import SHARD_IMAGES, Priority, Shard
from worker.jobs.policy import AT_HAND_S, HOLDS, OWNERS_AT_HAND, SHARDS_AT_HAND
from worker.jobs.worker_registry import Pace
from worker.process.shard_leases import Lease, Room


@dataclass(frozen=True, slots=True)
class AtHand:
    """What a worker holds of one class of a model.

    Attributes:
        images: those that have not left the worker.
        image_steps: all steps of these images, those that are done among them; guided ones twice.
        shards: how many they belong to.
        owners: whose they are.
    """

    images: int = 0
    image_steps: int = 0
    shards: int = 0
    owners: frozenset[str] = frozenset()


def wanted_classes(
    capacity: int,
    pace: Pace,
    interactive: AtHand,
    bulk: AtHand,
    *,
    others_s: float = 0.0,
    is_lean: bool = False,
) -> dict[Priority, Room]:
    """Decide of which classes a worker would take another shard for one of its models.

    - A class is lacking until the worker has its largest batch of it at hand, and
      AT_HAND_S seconds of work at its pace. So a fast worker fills its pool with small jobs, and a
      slow one leaves to others what it cannot run soon.
    - A few interactive shards are at hand in any case, so that a small job joins the next step
      beside a large one. Beyond these, shards of owners of whom the worker holds nothing are taken.
      So no owner can keep others out, however long its images take.
    - The first bulk shard has a place of its own, however many interactive shards wait. So the
      scheduler always has bulk work for its floor. After it there is still room for an interactive
      shard, unless the pool holds only one shard.

    Args:
        capacity: images that the model's pool holds.
        pace: how fast the worker runs the model.
        interactive: what the worker holds of the model's interactive work.
        bulk: what it holds of the model's bulk work.
        others_s: seconds of work that the worker has at hand of its other models.
        is_lean: whether it is to have no more than a batch at hand.

    Returns:
        The classes to take a shard of, each with how much of it. An image that is taken of one
        class takes room of both.
    """
    left = capacity - interactive.images - bulk.images
    # The first shard of the other class has a place of its own.
    for_interactive = left if bulk.images else left - SHARD_IMAGES
    for_bulk = left - SHARD_IMAGES if bulk.images else left
    if not interactive.images + bulk.images:
        for_interactive = for_bulk = max(left, SHARD_IMAGES)
    bulk_most = HOLDS * pace.largest - bulk.images
    work = 0 if is_lean else round(max(0.0, AT_HAND_S - others_s) * pace.image_steps_per_s)
    rooms = {
        Priority.INTERACTIVE: Room(
            for_interactive,
            batch=max(0, pace.largest - interactive.images),
            image_steps=max(0, work - interactive.image_steps),
            shards=max(0, SHARDS_AT_HAND - interactive.shards) if not is_lean else 0,
            newcomers=max(0, OWNERS_AT_HAND - len(interactive.owners)),
            owners=interactive.owners,
        ),
        Priority.BULK: Room(
            min(for_bulk, SHARD_IMAGES + max(0, bulk_most - SHARD_IMAGES)),
            batch=max(0, pace.largest - bulk.images),
            image_steps=max(0, work - bulk.image_steps) if bulk_most > 0 else 0,
        ),
    }
    return {
        priority: room
        for priority, room in rooms.items()
        if room.images >= SHARD_IMAGES
        and (room.batch or room.image_steps or room.shards or room.newcomers)
    }


class WorkerLoad:
    """What the worker holds, by model and class.

    The intake and the loop write it, from two threads.

    Attributes:
        changed: is set when something may be taken that could not be taken before.
        suspects: the leases of suspects. While there are any the worker takes no other shard, so
            that their loss is nobody else's.
        parked: shards that another worker asked for, the first taken first. The intake hands them
            back.
        lean_until: when the worker may again take more than its largest batch, in seconds of the
            loop's clock, because another one had nothing.
    """

    def __init__(self) -> None:
        self._images: dict[tuple[str, Priority], int] = {}
        self._image_steps: dict[tuple[str, Priority], int] = {}
        # Images by shard, and by owner.
        self._shards: dict[tuple[str, Priority], Counter[str]] = {}
        self._owners: dict[tuple[str, Priority], Counter[str]] = {}
        self._lock = threading.Lock()
        self.changed = threading.Event()
        self.suspects: tuple[Lease, ...] = ()
        self.parked: SimpleQueue[list[Lease]] = SimpleQueue()
        self.lean_until = 0.0

    def add(self, shard: Shard, images: int) -> None:
        """Count images of the shard that come, or with a minus those that go."""
        key = (shard.recipe.model, shard.priority)
        with self._lock:
            for counts, name in ((self._shards, shard.id), (self._owners, shard.owner)):
                counter = counts.setdefault(key, Counter())
                counter[name] += images
                if not counter[name]:
                    del counter[name]
            self._images[key] = self._images.get(key, 0) + images
            steps = self._image_steps.get(key, 0) + images * shard.recipe.passes
            self._image_steps[key] = steps
        self.changed.set()

    def add_suspect(self, lease: Lease) -> None:
        """Take no other shard until the lease is cleared."""
        with self._lock:
            self.suspects = (*self.suspects, lease)

    def clear_suspect(self, lease: Lease) -> None:
        """Forget the lease as a suspect: it is one no more, or is no longer here."""
        with self._lock:
            left = tuple(suspect for suspect in self.suspects if suspect is not lease)
            is_changed, self.suspects = left != self.suspects, left
        if is_changed:
            self.changed.set()

    def at_hand(self, model: str, priority: Priority) -> AtHand:
        """Return what the worker holds of one class of a model."""
        key = (model, priority)
        with self._lock:
            return AtHand(
                self._images.get(key, 0),
                self._image_steps.get(key, 0),
                len(self._shards.get(key, ())),
                frozenset(self._owners.get(key, ())),
            )

    def images(self, model: str, priority: Priority) -> int:
        """Count the images of one class that the worker holds of a model."""
        return self.at_hand(model, priority).images
