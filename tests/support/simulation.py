"""Workers without their networks, in a time that passes by calculation.

They take shards by the rule of worker/process/load.py. The scheduler and the batch sizes are those
of the engine.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from worker.engine.batch_sizes import BatchSizes
from worker.engine.scheduler import NOTHING_SERVED, ChainGroup, Served, pick, waiting
from worker.jobs.domain import Priority, Shard
from worker.jobs.policy import FLOOR
from worker.jobs.worker_registry import Pace
from worker.process.load import AtHand, wanted_classes
from worker.process.shard_leases import Room

CAPACITY = 1024


class _Waiting:
    """The shards of a class that wait, by owner. Owners take turns."""

    def __init__(self, shards: Iterable[Shard]) -> None:
        self._by_owner: dict[str, deque[Shard]] = {}
        for shard in shards:
            self._by_owner.setdefault(shard.owner, deque()).append(shard)

    def pop(self, room: Room) -> Shard | None:
        """Return the shard whose turn it is; None if there is no room for any."""
        for owner in self._by_owner:
            if not (room.batch or room.image_steps or room.shards) and owner in room.owners:
                continue
            shards = self._by_owner.pop(owner)
            shard = shards.popleft()
            if shards:
                self._by_owner[owner] = shards
            return shard
        return None


Queues = Mapping[Priority, _Waiting]


@dataclass(slots=True)
class _Worker:
    batch_sizes: BatchSizes
    image_steps: int = 0
    groups: dict[object, ChainGroup] = field(default_factory=dict)
    rows_left: dict[tuple[str, int], int] = field(default_factory=dict)
    group_of: dict[tuple[str, int], ChainGroup] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    served: Served = NOTHING_SERVED
    since_bulk: int = 0

    def take(self, queues: Queues) -> bool:
        """Take one shard; False if none is wanted."""
        pace = Pace.fit(self.batch_sizes.seconds)
        wanted = wanted_classes(CAPACITY, pace, self._at_hand(True), self._at_hand(False))
        order = [Priority.INTERACTIVE, Priority.BULK]
        if self.since_bulk >= FLOOR - 1:
            order.reverse()
        for priority in order:
            shard = queues[priority].pop(wanted[priority]) if priority in wanted else None
            if shard is not None:
                is_bulk = priority is Priority.BULK
                self.since_bulk = 0 if is_bulk else self.since_bulk + 1
                self._admit(shard)
                return True
        return False

    def step(self) -> tuple[float, list[str]]:
        """Take one step; return its seconds, and the job of each image that it finishes."""
        groups = list(self.groups.values())
        interactive, bulk = waiting(groups, interactive=True), waiting(groups, interactive=False)
        chosen = pick(groups, self.batch_sizes.places(interactive, bulk), self.served)
        interactive_chosen = sum(self.group_of[chain].interactive for chain in chosen)
        self.served = self.served.plus(len(chosen), interactive_chosen)
        self.image_steps += len(chosen)
        seconds = self.batch_sizes.seconds[self.batch_sizes.size_for(len(chosen))]
        return seconds, [job for job in map(self._advance, chosen) if job]

    def _at_hand(self, interactive: bool) -> AtHand:
        groups = [group for group in self.groups.values() if group.interactive is interactive]
        return AtHand(
            waiting(groups, interactive),
            sum(len(group.chains) * self.steps[str(group.job)] for group in groups),
            len(groups),
            frozenset(group.owner for group in groups),
        )

    def _admit(self, shard: Shard) -> None:
        self.steps[shard.job] = shard.recipe.steps
        group = ChainGroup(shard.job, shard.owner, shard.priority is Priority.INTERACTIVE)
        group = self.groups.setdefault(group.key, group)
        for index in shard.indices:
            self.rows_left[shard.job, index] = shard.recipe.steps
            self.group_of[shard.job, index] = group
            group.join((shard.job, index), shard.recipe.steps)

    def _advance(self, chain: tuple[str, int]) -> str | None:
        """Give the chain a step; return its job if that finishes it."""
        group = self.group_of[chain]
        self.rows_left[chain] -= 1
        group.rows_left -= 1
        if self.rows_left[chain]:
            return None
        del self.rows_left[chain]
        group.leave(chain, 0)
        if not group.chains:
            del self.groups[group.key]
        return chain[0]


def finished_at(
    jobs: Iterable[Sequence[Shard]], workers: int, seconds: Mapping[int, float], luck: Random
) -> dict[str, float]:
    """Simulate workers until all jobs are finished.

    All jobs are in the queue at the beginning, and nothing else comes. Which worker is the first to
    take a shard is a matter of luck.

    Args:
        jobs: the shards of each job, in the order in which the jobs were posted.
        workers: how many workers there are.
        seconds: of a step, by batch size.
        luck: shuffles the workers.

    Returns:
        Seconds until each job is finished, by the job's id.
    """
    shards = [shard for job in jobs for shard in job]
    queues = {p: _Waiting(shard for shard in shards if shard.priority is p) for p in Priority}
    crowd = [_Worker(BatchSizes(seconds)) for _ in range(workers)]
    while any(worker.take(queues) for worker in luck.sample(crowd, workers)):
        pass
    ends: dict[str, float] = {}
    turns = [(0.0, number) for number in range(workers)]
    while turns:
        now, number = heapq.heappop(turns)
        worker = crowd[number]
        while worker.take(queues):
            pass
        if worker.rows_left:
            took_s, finished = worker.step()
            ends |= dict.fromkeys(finished, now + took_s)
            heapq.heappush(turns, (now + took_s, number))
    return ends


def image_steps_by(
    shards: Iterable[Shard],
    fleet: Sequence[tuple[float, Mapping[int, float]]],
    from_s: float,
    until_s: float,
) -> list[int]:
    """Simulate workers that start one after the other, and count what each does.

    Args:
        shards: all of them are in the queue at the beginning.
        fleet: of each worker when it starts, and the seconds of a step by batch size.
        from_s: when the count begins.
        until_s: when it ends.

    Returns:
        The image-steps of each worker in that time.
    """
    waits = list(shards)
    queues = {p: _Waiting(shard for shard in waits if shard.priority is p) for p in Priority}
    crowd = [_Worker(BatchSizes(seconds)) for _, seconds in fleet]
    counts = [0] * len(fleet)
    turns = [(start_s, number) for number, (start_s, _) in enumerate(fleet)]
    heapq.heapify(turns)
    while turns[0][0] < until_s:
        now, number = heapq.heappop(turns)
        worker = crowd[number]
        while worker.take(queues):
            pass
        before = worker.image_steps
        took_s = worker.step()[0] if worker.rows_left else until_s
        if now >= from_s:
            counts[number] += worker.image_steps - before
        heapq.heappush(turns, (now + took_s, number))
    return counts
