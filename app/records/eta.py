"""The place of a queued job, and an estimate of the seconds until it has finished.

The estimate counts work in image-steps: one image taken through one step.
It adds the work that comes before or beside the job's own, and divides by the workers' rate.
An image's steps follow each other, so the estimate is never below the time that they take.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from worker.jobs.domain import SHARD_IMAGES
from worker.jobs.policy import FLOOR, HOLDS, STRETCH
from worker.jobs.worker_registry import Pace


@dataclass(frozen=True, slots=True)
class OthersWork:
    """Work that other jobs of one class have left: interactive, earlier bulk or later bulk.

    Attributes:
        work: Image-steps in all.
        smaller: Image-steps of the same owner's jobs that have less left, and so come first.
        images: Images that are not finished.
        owners: Other owners that have jobs among these.
    """

    work: float
    smaller: float
    images: float
    owners: int

    def shared_with(self, own: float) -> float:
        """Count the image-steps that are done when `own` image-steps of the job are.

        Owners share equally, and of one owner's jobs the one with the least left comes first.
        """
        return min((self.smaller + own) * (1 + self.owners), self.work + own)

    def images_beside(self, steps: int) -> float:
        """Average how many of these images step while an image takes its `steps`."""
        return min(self.images, self.work / steps)

    def part(self, share: float) -> OthersWork:
        """Scale work and images by `share`, between 0 and 1."""
        return OthersWork(share * self.work, share * self.smaller, share * self.images, self.owners)

    def __add__(self, other: OthersWork) -> OthersWork:
        return OthersWork(
            self.work + other.work,
            self.smaller + other.smaller,
            self.images + other.images,
            self.owners + other.owners,
        )


NO_WORK = OthersWork(0.0, 0.0, 0.0, 0)


@dataclass(frozen=True, slots=True)
class QueuedWork:
    """A queued job and all work that it shares the workers with (app/records/open_work.py).

    Attributes:
        own_interactive: Interactive image-steps of the job: those of its first shard.
        own_bulk: The rest of its image-steps.
        count: Images of the job.
        steps: Steps of each image.
        interactive: Interactive work of others.
        earlier: Bulk work of others that was posted before the job.
        later: Bulk work of others that was posted after it.
        other_models: Work of other models that comes first, in image-steps of this one's cost.
        bulk_beside: Whether there is bulk work to step beside the interactive.
    """

    own_interactive: int
    own_bulk: int
    count: int
    steps: int
    interactive: OthersWork
    earlier: OthersWork
    later: OthersWork
    other_models: float
    bulk_beside: bool

    def seconds(self, paces: Sequence[Pace]) -> float:
        """Estimate the seconds until the job has finished.

        Args:
            paces: How fast each worker that has the job's model runs it.
        """
        rate = sum(pace.image_steps_per_s for pace in paces)
        own_s = max(self._interactive_s(paces, rate), self._bulk_s(paces, rate))
        # Models take turns in a worker, so others at most double the time.
        return own_s + min(self.other_models / rate, own_s)

    @property
    def _shard_images(self) -> int:
        """Images of the job's largest shard."""
        return min(self.count, SHARD_IMAGES)

    def _interactive_s(self, paces: Sequence[Pace], rate: float) -> float:
        """Estimate the seconds that the interactive part takes: the longest of three bounds.

        - All work that is done until then, at the rate of all workers together.
        - The job's own work at the rate of one worker, since its shard is in one worker.
        - The steps of one image, one after the other.
        """
        if not self.own_interactive:
            return 0.0
        shared = self.interactive.shared_with(self.own_interactive)
        work = shared * FLOOR / (FLOOR - 1) if self.bulk_beside else shared
        images = self._shard_images
        beside = self.interactive.images_beside(self.steps)
        in_batch = max(images, (beside + images) / len(paces))
        step_s = _step_s(paces, in_batch, math.inf if self.bulk_beside else in_batch)
        return max(
            work / rate,
            self.own_interactive * len(paces) / rate,
            self.own_interactive / images * step_s,
        )

    def _bulk_s(self, paces: Sequence[Pace], rate: float) -> float:
        """Estimate the seconds until the bulk part is done.

        Bulk work comes after all interactive work, but never gets less than one place in FLOOR.
        Until workers have room for the job, bulk work that was posted earlier comes first.
        From then on the smaller work comes first, and owners share.
        """
        if not self.own_bulk:
            return 0.0
        waiting = self._share_of_earlier_that_goes_first(paces)
        beside = self.earlier.part(1 - waiting) + self.later
        bulk = waiting * self.earlier.work + beside.shared_with(self.own_bulk)
        work = min(self.interactive.work + self.own_interactive + bulk, bulk * FLOOR)
        images = self._shard_images
        one_shard = min(self.own_bulk, images * self.steps)
        own = self.own_interactive + self.own_bulk
        in_one_worker = self.own_interactive + one_shard
        return (work - own) / rate + max(
            own / rate,
            in_one_worker * len(paces) / rate,
            one_shard / images * self._bulk_step_s(paces),
        )

    def _share_of_earlier_that_goes_first(self, paces: Sequence[Pace]) -> float:
        """Give the share, 0 to 1, of earlier bulk work that ends before workers take the job."""
        if not self.earlier.images:
            return 0.0
        room = sum(HOLDS * pace.largest for pace in paces)
        too_many = self.earlier.images + self.own_bulk / self.steps - room
        return min(1.0, max(0.0, too_many) / self.earlier.images)

    def _bulk_step_s(self, paces: Sequence[Pace]) -> float:
        """Estimate the seconds of a step that bulk images of the job are in."""
        images = self._shard_images
        interactive = self.interactive.images_beside(self.steps)
        earlier = self.earlier.images_beside(self.steps)
        others = interactive + earlier + self.later.images_beside(self.steps)
        in_batch = max(images, (others + images) / len(paces))
        return _step_s(paces, interactive / len(paces), in_batch)


def _step_s(paces: Sequence[Pace], interactive: float, images: float) -> float:
    """Average the seconds of a step over the workers.

    Bulk images join the interactive ones only as far as the engine lets them, which is STRETCH.

    Args:
        paces: How fast each worker is.
        interactive: Interactive images in a worker's batch, on the average.
        images: All images in it.
    """

    def mean_s(images: float) -> float:
        return sum(pace.step_s(images) for pace in paces) / len(paces)

    if not interactive:
        return mean_s(images)
    return min(mean_s(images), max(mean_s(interactive), STRETCH * mean_s(1)))
