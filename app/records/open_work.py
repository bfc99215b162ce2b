"""All open work as one read found it, and the place of a job in it.

Sums are kept up to each job, by class and model. So a place costs the same behind 10 and 250 jobs.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from app.records.eta import NO_WORK, OthersWork, QueuedWork
from app.schemas.jobs import QueuePlace
from worker.jobs.domain import SHARD_IMAGES
from worker.jobs.worker_registry import Pace, WorkerInfo

# Jobs of each class that are read and sorted at most. Behind more, owners' sums must do.
MOST_READ = 256


@dataclass(frozen=True, slots=True)
class OpenJob:
    """A job that waits or runs.

    Attributes:
        posted_at: Seconds since the epoch.
        left: Image-steps that are left of it.
        cost: What one of its image-steps counts as (Card.cost_per_image_step).
    """

    id: str
    owner: str
    model: str
    is_interactive: bool
    count: int
    steps: int
    posted_at: float
    left: int
    cost: int

    @property
    def interactive_left(self) -> int:
        """What is left of its interactive part: its first shard, which is done first."""
        if not self.is_interactive:
            return 0
        done = self.count * self.steps - self.left
        return max(0, min(self.left, min(self.count, SHARD_IMAGES) * self.steps - done))

    @property
    def bulk_left(self) -> int:
        """What is left of the rest."""
        return self.left - self.interactive_left

    @property
    def bulk_at_once(self) -> int:
        """What a worker has of its bulk part, a shard or so, and compares with others'."""
        return min(self.bulk_left, SHARD_IMAGES * self.steps)


@dataclass(slots=True)
class _Line:
    """Work of one class and one model, in the order of its posting.

    Attributes:
        posted_at: When each part was posted.
        work: Image-steps of the parts before each, and of all.
        images: The same of their images.
        owners: The same of their owners, each counted at the first part.
        first_of: Number of each owner's first part.
        of_owner: Each owner's parts: id, number, image-steps, and those that decide who is first.
    """

    posted_at: list[float] = field(default_factory=list)
    work: list[int] = field(default_factory=lambda: [0])
    images: list[int] = field(default_factory=lambda: [0])
    owners: list[int] = field(default_factory=lambda: [0])
    first_of: dict[str, int] = field(default_factory=dict)
    of_owner: dict[str, list[tuple[str, int, int, int]]] = field(default_factory=dict)

    def append(self, job: OpenJob, work: int, images: int, at_once: int) -> None:
        """Add a part of a job that was posted after all others."""
        number = len(self.posted_at)
        self.posted_at.append(job.posted_at)
        self.work.append(self.work[-1] + work)
        self.images.append(self.images[-1] + images)
        self.first_of.setdefault(job.owner, number)
        self.owners.append(len(self.first_of))
        self.of_owner.setdefault(job.owner, []).append((job.id, number, work, at_once))

    def split(self, job: OpenJob, at_once: int) -> tuple[OthersWork, OthersWork]:
        """Return others' work that was posted before the job, and after it."""
        here = bisect_left(self.posted_at, job.posted_at)
        smaller = [0, 0]
        own_work = own_images = 0
        for its_id, number, work, its in self.of_owner.get(job.owner, ()):
            is_later = number >= here
            if its_id == job.id:
                own_work = work
                own_images = self.images[number + 1] - self.images[number]
            elif its < at_once or (its == at_once and not is_later):
                smaller[is_later] += work
        is_own_later = self.first_of.get(job.owner, here) >= here
        has_own = job.owner in self.first_of
        earlier = OthersWork(
            self.work[here],
            smaller[0],
            self.images[here],
            self.owners[here] - (has_own and not is_own_later),
        )
        later = OthersWork(
            self.work[-1] - self.work[here] - own_work,
            smaller[1],
            self.images[-1] - self.images[here] - own_images,
            self.owners[-1] - self.owners[here] - (has_own and is_own_later),
        )
        return earlier, later


@dataclass(slots=True)
class _Model:
    """The open work of one model.

    Attributes:
        interactive: Interactive parts of jobs.
        bulk: Bulk parts of jobs, of interactive ones too.
        interactive_cost: What is left of its interactive jobs, times their cost.
        bulk_cost: What is left of its bulk jobs, times their cost, up to each and of all.
        bulk_posted_at: When those were posted.
    """

    interactive: _Line = field(default_factory=_Line)
    bulk: _Line = field(default_factory=_Line)
    interactive_cost: int = 0
    bulk_cost: list[int] = field(default_factory=lambda: [0])
    bulk_posted_at: list[float] = field(default_factory=list)

    def append(self, job: OpenJob) -> None:
        """Add a job that was posted after all others."""
        now, later = job.interactive_left, job.bulk_left
        if now:
            self.interactive.append(job, now, min(job.count, SHARD_IMAGES), now)
        if later:
            self.bulk.append(job, later, math.ceil(later / job.steps), job.bulk_at_once)
        if job.is_interactive:
            self.interactive_cost += job.left * job.cost
        else:
            self.bulk_cost.append(self.bulk_cost[-1] + job.left * job.cost)
            self.bulk_posted_at.append(job.posted_at)

    def cost_before(self, posted_at: float) -> int:
        """Add up what comes before a job of another model."""
        bulk = self.bulk_cost[bisect_left(self.bulk_posted_at, posted_at)]
        return self.interactive_cost + bulk


class OpenWork:
    """The open jobs of a service and its workers, as one read found them."""

    def __init__(
        self,
        jobs: Iterable[OpenJob],
        interactive: int,
        bulk: int,
        load: Mapping[str, int],
        workers: Sequence[WorkerInfo],
    ) -> None:
        """Sort the jobs.

        Args:
            jobs: Open jobs: of each class all, or the `MOST_READ` that were posted first.
            interactive: How many interactive jobs are open.
            bulk: How many bulk jobs are open.
            load: What is left of each owner's jobs, in image-steps times their cost.
            workers: The live workers.
        """
        self.workers = workers
        self._load = dict(load)
        self._interactive = interactive
        self._bulk = bulk
        self._jobs: dict[str, OpenJob] = {}
        self._models: defaultdict[str, _Model] = defaultdict(_Model)
        self._paces: dict[str, list[Pace]] = {}
        for job in sorted(jobs, key=lambda job: job.posted_at):
            self._append(job)

    def add(self, job: OpenJob) -> None:
        """Add a job that has just been posted."""
        if job.id in self._jobs:
            return
        self._load[job.owner] = self._load.get(job.owner, 0) + job.left * job.cost
        if job.is_interactive:
            self._interactive += 1
        else:
            self._bulk += 1
        if max(self._interactive, self._bulk) <= MOST_READ:
            self._append(job)

    def place(self, job: OpenJob, position: int) -> QueuePlace:
        """Give a queued job its place. The estimate is None if no live worker has its model.

        Args:
            job: The job as it was posted. What is left of it is taken from the read if it is there.
            position: Jobs before it.
        """
        job = self._jobs.get(job.id, job)
        paces = self._paces_of(job.model)
        if not paces:
            return QueuePlace(position=position, eta_s=None)
        # Of interactive jobs those that come later matter too, since owners share.
        knows_others = self._interactive <= MOST_READ and (
            self._bulk <= MOST_READ or job.id in self._jobs
        )
        queued = self._beside(job) if knows_others else self._behind(job, position)
        return QueuePlace(position=position, eta_s=round(queued.seconds(paces), 1))

    def _append(self, job: OpenJob) -> None:
        self._jobs[job.id] = job
        self._models[job.model].append(job)

    def _beside(self, job: OpenJob) -> QueuedWork:
        """Find what the job shares the workers with, of all jobs that matter."""
        model = self._models.get(job.model) or _Model()
        before, after = model.interactive.split(job, job.interactive_left)
        earlier, later = model.bulk.split(job, job.bulk_at_once)
        others = sum(of.cost_before(job.posted_at) for of in self._models.values())
        return QueuedWork(
            own_interactive=job.interactive_left,
            own_bulk=job.bulk_left,
            count=job.count,
            steps=job.steps,
            interactive=before + after,
            earlier=earlier,
            later=later,
            other_models=(others - model.cost_before(job.posted_at)) / job.cost,
            bulk_beside=bool(self._bulk or earlier.work or job.bulk_left),
        )

    def _behind(self, job: OpenJob, position: int) -> QueuedWork:
        """Guess from each owner's sum what the job shares the workers with.

        The owner's own jobs are taken to be as many before the job as all jobs before it are of
        all. Everything counts as of the job's class and model.
        """
        open_jobs = max(1, self._interactive + self._bulk - 1)
        own = self._load.get(job.owner, 0) - job.left * job.cost
        own_before = max(0.0, own) * min(1.0, position / open_jobs) / job.cost
        others = sum(left for owner, left in self._load.items() if owner != job.owner) / job.cost
        work = own_before + others
        owners = len(self._load.keys() - {job.owner})
        shared = OthersWork(work, own_before, work / job.steps, owners)
        is_interactive = job.interactive_left > 0
        return QueuedWork(
            own_interactive=job.interactive_left,
            own_bulk=job.bulk_left,
            count=job.count,
            steps=job.steps,
            interactive=shared if is_interactive else NO_WORK,
            earlier=NO_WORK,
            later=NO_WORK if is_interactive else shared,
            other_models=0.0,
            bulk_beside=bool(self._bulk or job.bulk_left),
        )

    def _paces_of(self, model: str) -> list[Pace]:
        if model not in self._paces:
            having = (worker for worker in self.workers if model in worker.models)
            self._paces[model] = [worker.pace(model) for worker in having]
        return self._paces[model]
