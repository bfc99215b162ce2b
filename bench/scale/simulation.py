"""A discrete-event simulation of a fleet of one model.

The scheduler and the batch sizes are the engine's own code. The rest are the rules of
worker/jobs/lua/take_shards.lua and worker/process/load.py, in plain Python: owners take turns, one
shard in FLOOR is bulk, and a worker has a batch and a few seconds of work at hand.

What is left out: faults, models that take turns, and parked shards that go to idle workers.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import cast

from worker.engine.batch_sizes import BatchSizes
from worker.engine.scheduler import NOTHING_SERVED, ChainGroup, pick, waiting
from worker.jobs.domain import SHARD_IMAGES, Priority, Recipe, Shard, shards_of
from worker.jobs.policy import AT_HAND_S, FLOOR

# Images of a pool.
CAPACITY = 1024
# Job and index.
ChainName = tuple[str, int]
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class Device:
    """A device, whose batches take their images divided by the pace, and `least_s` or more.

    Attributes:
        image_steps_per_s: Its pace, in large batches.
        least_s: Seconds of the smallest batch.
        largest: Images of its largest batch.
    """

    image_steps_per_s: float
    least_s: float = 0.0
    largest: int = 64

    def batch_sizes(self) -> BatchSizes:
        """Return the batch sizes that it has, with what a step of each takes."""
        sizes = [size for size in _SIZES if size <= self.largest]
        return BatchSizes({n: max(self.least_s, n / self.image_steps_per_s) for n in sizes})


@dataclass(frozen=True, slots=True)
class Overheads:
    """The time around the networks, in seconds.

    Attributes:
        start_s: From a post to the first step in an idle worker.
        worker_s: Time of a worker's threads for each shard, one shard after the other.
        server_s: Time of the job store for each shard, of all workers one after the other.
    """

    start_s: float = 0.0
    worker_s: float = 0.0
    server_s: float = 0.0


@dataclass(frozen=True, slots=True)
class JobArrival:
    """A job, and the second in which it is posted."""

    at_s: float
    count: int
    steps: int
    owner: str = "local"
    priority: Priority = Priority.INTERACTIVE


def poisson(
    jobs: int, per_s: float, count: int, steps: int, luck: Random, bulk_share: float = 0.0
) -> list[JobArrival]:
    """Return jobs that come at random, so many a second on average.

    Args:
        jobs: How many jobs come.
        per_s: Jobs a second.
        count: Images of each.
        steps: Steps of each image.
        luck: Decides when they come, and which are bulk.
        bulk_share: Share of the jobs whose class is bulk.
    """
    at_s, arrivals = 0.0, []
    for _ in range(jobs):
        at_s += luck.expovariate(per_s)
        priority = Priority.BULK if luck.random() < bulk_share else Priority.INTERACTIVE
        arrivals.append(JobArrival(at_s, count, steps, priority=priority))
    return arrivals


class Rotation:
    """The shards of a class that wait, by owner. Owners take turns."""

    def __init__(self) -> None:
        self._by_owner: dict[str, deque[Shard]] = {}

    def push(self, shard: Shard) -> None:
        """Add a shard at the back of its owner's queue."""
        self._by_owner.setdefault(shard.owner, deque()).append(shard)

    def pop(self) -> Shard | None:
        """Return the first shard of the owner whose turn it is; None if nothing waits."""
        for owner in self._by_owner:
            shards = self._by_owner.pop(owner)
            shard = shards.popleft()
            if shards:
                self._by_owner[owner] = shards
            return shard
        return None


@dataclass
class SimulatedWorker:
    """A worker: what it holds, and what it takes and steps next.

    Attributes:
        device: What it computes on.
        intake_free_s: When its intake has handed on what it took.
        is_stepping: Whether a step is under way.
        image_steps: Image-steps that it has made.
    """

    device: Device
    intake_free_s: float = 0.0
    is_stepping: bool = False
    image_steps: int = 0
    _groups: dict[object, ChainGroup] = field(default_factory=dict)
    _group_of: dict[ChainName, ChainGroup] = field(default_factory=dict)
    _rows_left: dict[ChainName, int] = field(default_factory=dict)
    _served = NOTHING_SERVED
    _since_bulk: int = 0

    def __post_init__(self) -> None:
        self._batch_sizes = self.device.batch_sizes()
        # Images and image-steps at hand, by class.
        self._images = dict.fromkeys(Priority, 0)
        self._work = dict.fromkeys(Priority, 0)

    def take(self, waiting_by_class: dict[Priority, Rotation]) -> list[Shard]:
        """Take the shards whose turn it is, as many as one call may."""
        taken: list[Shard] = []
        images = 0
        while images < SHARD_IMAGES:
            shard = self._next(waiting_by_class)
            if shard is None:
                break
            is_bulk = shard.priority is Priority.BULK
            self._since_bulk = 0 if is_bulk else self._since_bulk + 1
            self._images[shard.priority] += shard.count
            self._work[shard.priority] += shard.count * shard.recipe.steps
            images += shard.count
            taken.append(shard)
        return taken

    def admit(self, shards: Iterable[Shard]) -> None:
        """Put what was taken into the engine."""
        for shard in shards:
            group = ChainGroup(shard.job, shard.owner, shard.priority is Priority.INTERACTIVE)
            group = self._groups.setdefault(group.key, group)
            for index in shard.indices:
                chain = (shard.job, index)
                self._rows_left[chain] = shard.recipe.steps
                self._group_of[chain] = group
                group.join(chain, shard.recipe.steps)

    def step(self) -> tuple[float, list[ChainName]]:
        """Take one step.

        Returns:
            Its seconds, 0 if there is nothing to step; and the images that it finishes.
        """
        groups = list(self._groups.values())
        if not groups:
            return 0.0, []
        interactive, bulk = (waiting(groups, interactive=which) for which in (True, False))
        places = self._batch_sizes.places(interactive, bulk)
        chosen = cast("list[ChainName]", pick(groups, places, self._served))
        interactive = sum(self._group_of[chain].interactive for chain in chosen)
        self._served = self._served.plus(len(chosen), interactive)
        self.image_steps += len(chosen)
        seconds = self._batch_sizes.seconds[self._batch_sizes.size_for(len(chosen))]
        return seconds, [chain for chain in chosen if self._advance(chain)]

    def forget(self, shard: Shard) -> None:
        """Count the images of a shard that is finished as gone."""
        self._images[shard.priority] -= shard.count
        self._work[shard.priority] -= shard.count * shard.recipe.steps

    def _next(self, waiting_by_class: dict[Priority, Rotation]) -> Shard | None:
        order = [Priority.INTERACTIVE, Priority.BULK]
        if self._since_bulk >= FLOOR - 1:
            order.reverse()
        for priority in order:
            if self._lacks(priority):
                shard = waiting_by_class[priority].pop()
                if shard:
                    return shard
        return None

    def _lacks(self, priority: Priority) -> bool:
        """Tell whether the worker would take a shard of the class."""
        if sum(self._images.values()) + SHARD_IMAGES > CAPACITY:
            return False
        work = AT_HAND_S * self.device.image_steps_per_s
        return self._images[priority] < self._batch_sizes.largest or self._work[priority] < work

    def _advance(self, chain: ChainName) -> bool:
        """Give a chain a step, and tell whether it was the last one."""
        group = self._group_of[chain]
        self._rows_left[chain] -= 1
        group.rows_left -= 1
        if self._rows_left[chain]:
            return False
        group.leave(chain, 0)
        del self._rows_left[chain], self._group_of[chain]
        if not group.chains:
            del self._groups[group.key]
        return True


class SimulatedFleet:
    """Workers and a queue, and the events that are to come."""

    def __init__(self, devices: Sequence[Device], overheads: Overheads, luck: Random) -> None:
        """Make a fleet that has nothing to do.

        Args:
            devices: One for each worker.
            overheads: The time around the networks.
            luck: Decides which idle worker is the first to take a shard.
        """
        self.workers = [SimulatedWorker(device) for device in devices]
        self._overheads = overheads
        self._luck = luck
        self._waiting = {priority: Rotation() for priority in Priority}
        self._server_free_s = 0.0
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._numbers = count()
        # Images that are not finished, by shard; shards by the chain's job and index.
        self._left: dict[str, int] = {}
        self._shard_of: dict[ChainName, Shard] = {}
        self._shards_left: dict[str, int] = {}
        self._ended_s: dict[str, float] = {}

    def run(self, arrivals: Sequence[JobArrival]) -> list[float]:
        """Return the seconds from each job's post to its end, in the order of the jobs."""
        for number, arrival in enumerate(arrivals):
            self._at(arrival.at_s + self._overheads.start_s, self._posting(str(number), arrival))
        while self._events:
            now, _, happen = heapq.heappop(self._events)
            happen(now)
        return [self._ended_s[str(n)] - arrival.at_s for n, arrival in enumerate(arrivals)]

    def _posting(self, job: str, arrival: JobArrival) -> Callable[[float], None]:
        def post(now: float) -> None:
            recipe = Recipe("simulated", "", "ddpm", arrival.steps, "fixed_small", 0.0, 0)
            shards = list(
                shards_of(job, recipe, 0, arrival.count, arrival.owner, arrival.priority.value)
            )
            self._shards_left[job] = len(shards)
            for shard in shards:
                self._waiting[shard.priority].push(shard)
                self._left[shard.id] = shard.count
                self._shard_of |= {(job, index): shard for index in shard.indices}
            for worker in self._luck.sample(self.workers, len(self.workers)):
                self._take(worker, now)

        return post

    def _take(self, worker: SimulatedWorker, now: float) -> None:
        if worker.intake_free_s > now:
            return
        taken = worker.take(self._waiting)
        if not taken:
            return
        self._server_free_s = max(now, self._server_free_s) + self._overheads.server_s * len(taken)
        worker.intake_free_s = max(self._server_free_s, now + self._overheads.worker_s * len(taken))

        def arrive(then: float) -> None:
            worker.admit(taken)
            self._step(worker, then)
            self._take(worker, then)

        self._at(worker.intake_free_s, arrive)

    def _step(self, worker: SimulatedWorker, now: float) -> None:
        if worker.is_stepping:
            return
        seconds, finished = worker.step()
        if not seconds:
            return
        worker.is_stepping = True

        def end(then: float) -> None:
            worker.is_stepping = False
            for image in finished:
                self._finish(worker, self._shard_of.pop(image), then)
            self._step(worker, then)
            self._take(worker, then)

        self._at(now + seconds, end)

    def _finish(self, worker: SimulatedWorker, shard: Shard, now: float) -> None:
        self._left[shard.id] -= 1
        if self._left[shard.id]:
            return
        worker.forget(shard)
        self._shards_left[shard.job] -= 1
        if not self._shards_left[shard.job]:
            self._ended_s[shard.job] = now

    def _at(self, when: float, happen: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), happen))


def percentile(seconds: Sequence[float], share: float) -> float:
    """Return the least value that so large a share of the values does not exceed."""
    return sorted(seconds)[max(0, math.ceil(share * len(seconds)) - 1)]
