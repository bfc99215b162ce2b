"""Where a queued job stands, and how long it will take."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from app.schemas.jobs import QueuePlace
from worker.jobs.domain import SHARD_IMAGES
from worker.jobs.policy import FLOOR, HOLDS, STRETCH
from worker.jobs.worker_registry import Pace, WorkerInfo

# Jobs of each priority that an estimate reads: 2 microseconds of Redis each, which does nothing
# else meanwhile.
MOST_READ = 256


def queue_place(
    answer: Sequence[int] | None, model: str, workers: Iterable[WorkerInfo]
) -> QueuePlace | None:
    if answer is None:
        return None
    position, *found = answer
    paces = [worker.pace(model) for worker in workers if model in worker.models]
    eta_s = round(_Ahead.of(found).seconds(paces), 1) if found and paces else None
    return QueuePlace(position=position, eta_s=eta_s)


@dataclass(frozen=True, slots=True)
class _Class:
    """Work of a class that others have, in image-steps; `smaller` is of the job's owner and comes first."""

    work: float
    smaller: float
    images: float
    owners: int

    def shared_with(self, own: float) -> float:
        """What is done when `own` is: owners share equally, and of one owner's jobs the one with the least left comes first."""
        return min((self.smaller + own) * (1 + self.owners), self.work + own)

    def images_beside(self, steps: int) -> float:
        """Images that step beside an image of so many steps, on the average."""
        return min(self.images, self.work / steps)

    def part(self, share: float) -> _Class:
        return _Class(share * self.work, share * self.smaller, share * self.images, self.owners)

    def __add__(self, other: _Class) -> _Class:
        return _Class(
            self.work + other.work,
            self.smaller + other.smaller,
            self.images + other.images,
            self.owners + other.owners,
        )


@dataclass(frozen=True, slots=True)
class _Ahead:
    """What queue_place.lua found."""

    own_interactive: int
    own_bulk: int
    count: int
    steps: int
    interactive: _Class
    earlier: _Class
    later: _Class
    other_models: int
    bulk_beside: int

    @classmethod
    def of(cls, found: Sequence[int]) -> _Ahead:
        own_interactive, own_bulk, count, steps, *classes, other_models, bulk_beside = found
        interactive, earlier, later = (_Class(*classes[i : i + 4]) for i in (0, 4, 8))
        return cls(
            own_interactive,
            own_bulk,
            count,
            steps,
            interactive,
            earlier,
            later,
            other_models,
            bulk_beside,
        )

    def seconds(self, paces: Sequence[Pace]) -> float:
        """Until the job has finished, at the pace of the workers that have its model."""
        rate = sum(pace.image_steps_per_s for pace in paces)
        own_s = max(self._interactive_s(paces, rate), self._bulk_s(paces, rate))
        return own_s + min(self.other_models / rate, own_s)  # models take turns in a worker

    def _interactive_s(self, paces: Sequence[Pace], rate: float) -> float:
        if not self.own_interactive:
            return 0.0
        shared = self.interactive.shared_with(self.own_interactive)
        work = shared * FLOOR / (FLOOR - 1) if self.bulk_beside else shared
        images = min(self.count, SHARD_IMAGES)
        at_once = max(images, (self.interactive.images_beside(self.steps) + images) / len(paces))
        step_s = _step_s(paces, at_once, math.inf if self.bulk_beside else at_once)
        return max(
            work / rate,
            self.own_interactive * len(paces) / rate,
            self.own_interactive / images * step_s,
        )

    def _bulk_s(self, paces: Sequence[Pace], rate: float) -> float:
        """After all that is interactive, but never with less than the floor.

        Until workers have room for the job, what was posted earlier comes first; from then on, what is less, and owners share.
        """
        if not self.own_bulk:
            return 0.0
        behind = (
            self.earlier.images
            + self.own_bulk / self.steps
            - sum(HOLDS * pace.largest for pace in paces)
        )
        before = min(1.0, max(0.0, behind) / self.earlier.images) if self.earlier.images else 0.0
        beside = self.earlier.part(1 - before) + self.later
        bulk = before * self.earlier.work + beside.shared_with(self.own_bulk)
        work = min(self.interactive.work + self.own_interactive + bulk, bulk * FLOOR)
        images = min(self.count, SHARD_IMAGES)
        of_one_shard = min(self.own_bulk, images * self.steps)
        interactive = self.interactive.images_beside(self.steps)
        others = (
            interactive
            + self.earlier.images_beside(self.steps)
            + self.later.images_beside(self.steps)
        )
        step_s = _step_s(
            paces, interactive / len(paces), max(images, (others + images) / len(paces))
        )
        own, in_one_worker = (
            self.own_interactive + self.own_bulk,
            self.own_interactive + of_one_shard,
        )
        return (work - own) / rate + max(
            own / rate, in_one_worker * len(paces) / rate, of_one_shard / images * step_s
        )


def _step_s(paces: Sequence[Pace], interactive: float, images: float) -> float:
    """Of so many images in a worker on the average; bulk ones join the interactive only as far as the engine lets them."""

    def mean_s(images: float) -> float:
        return sum(pace.step_s(images) for pace in paces) / len(paces)

    return (
        min(mean_s(images), max(mean_s(interactive), STRETCH * mean_s(1)))
        if interactive
        else mean_s(images)
    )
