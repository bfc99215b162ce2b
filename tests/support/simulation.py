"""Workers without their networks: the scheduler and the batch sizes as they are, in a time that passes by calculation."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from worker.engine.batch_sizes import BatchSizes
from worker.engine.scheduler import NOTHING_SERVED, ChainGroup, Served, pick, waiting
from worker.jobs.domain import SHARD_IMAGES, Shard

CAPACITY = 1024


@dataclass(slots=True)
class _Queues:
    interactive: deque[Shard]
    bulk: deque[Shard]


@dataclass(slots=True)
class _Worker:
    batch_sizes: BatchSizes
    lines: dict[object, ChainGroup] = field(default_factory=dict)
    rows_left: dict[tuple[str, int], int] = field(default_factory=dict)
    line_of: dict[tuple[str, int], ChainGroup] = field(default_factory=dict)
    given: Served = NOTHING_SERVED

    def take(self, queues: _Queues) -> bool:
        """One shard, by the rules of worker/process/intake.py; False where none is wanted."""
        bulk = waiting(self.lines.values(), interactive=False)
        if CAPACITY - len(self.rows_left) < SHARD_IMAGES:
            return False
        if queues.interactive:
            self._admit(queues.interactive.popleft())
        elif queues.bulk and bulk < 2 * self.batch_sizes.largest:
            self._admit(queues.bulk.popleft())
        else:
            return False
        return True

    def step(self) -> tuple[float, list[str]]:
        """The seconds that it takes, and the job of each image that is finished then."""
        lines = list(self.lines.values())
        places = self.batch_sizes.places(
            waiting(lines, interactive=True), waiting(lines, interactive=False)
        )
        chosen = pick(lines, places, self.given)
        self.given = self.given.plus(
            len(chosen), sum(self.line_of[chain].interactive for chain in chosen)
        )
        return self.batch_sizes.seconds[self.batch_sizes.size_for(len(chosen))], [
            job for job in map(self._advance, chosen) if job
        ]

    def _admit(self, shard: Shard) -> None:
        line = ChainGroup(shard.job, shard.owner, shard.priority == "interactive")
        line = self.lines.setdefault(line.key, line)
        for index in shard.indices:
            self.rows_left[shard.job, index] = shard.recipe.steps
            self.line_of[shard.job, index] = line
            line.join((shard.job, index), shard.recipe.steps)

    def _advance(self, chain: tuple[str, int]) -> str | None:
        line = self.line_of[chain]
        self.rows_left[chain] -= 1
        line.rows_left -= 1
        if self.rows_left[chain]:
            return None
        del self.rows_left[chain]
        line.leave(chain, 0)
        if not line.chains:
            del self.lines[line.key]
        return chain[0]


def finished_at(
    jobs: Iterable[Sequence[Shard]], workers: int, seconds: Mapping[int, float], luck: Random
) -> dict[str, float]:
    """Seconds from now until each job has finished, if all are in the queue now and nothing else comes.

    Which worker is the first to take a shard is a matter of luck.
    """
    shards = [shard for job in jobs for shard in job]
    queues = _Queues(
        *(
            deque(s for s in shards if (s.priority == "interactive") is interactive)
            for interactive in (True, False)
        )
    )
    crew = [_Worker(BatchSizes(seconds)) for _ in range(workers)]
    while any(worker.take(queues) for worker in luck.sample(crew, workers)):
        pass
    ends: dict[str, float] = {}
    turns = [(0.0, number) for number in range(workers)]
    while turns:
        now, number = heapq.heappop(turns)
        worker = crew[number]
        while worker.take(queues):
            pass
        if worker.rows_left:
            took, finished = worker.step()
            ends |= dict.fromkeys(finished, now + took)
            heapq.heappush(turns, (now + took, number))
    return ends
