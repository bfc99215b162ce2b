"""Reads all open work for estimates: at most once a second, and only while clients ask.

The read goes along with a round trip that is made anyway.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from redis.asyncio.client import Pipeline

from app.records.open_work import MOST_READ, OpenJob, OpenWork
from models.checkpoints.catalog import Card
from worker.jobs.domain import Priority
from worker.jobs.keys import LEFT, LOAD, WORKERS, open_key
from worker.jobs.scripts import load
from worker.jobs.worker_registry import parse_workers

_READ = load("read_queue")


class QueueReader:
    """Keeps what the last read found, and adds what this process posts in between.

    Attributes:
        latest: All open work; nothing before the first read.
        max_age_s: Seconds until it is read again.
    """

    def __init__(
        self, cards: Mapping[str, Card], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Take the models' cards by name, and a clock in seconds that never goes back."""
        self.latest = OpenWork((), 0, 0, {}, ())
        self.max_age_s = 1.0
        self._cards = cards
        self._clock = clock
        self._due_at = -1.0

    def buffer_if_due(self, pipe: Pipeline) -> bool:
        """Add a command to the pipeline if what is known has become old.

        Returns:
            Whether it did. `take` wants the answer.
        """
        is_due = self._clock() >= self._due_at
        if is_due:
            _READ.eval(
                pipe,
                interactive=open_key(Priority.INTERACTIVE),
                bulk=open_key(Priority.BULK),
                left=LEFT,
                load=LOAD,
                workers=WORKERS,
                most=MOST_READ,
            )
        return is_due

    def take(self, answers: Sequence[Any]) -> None:
        """Take the answer to what `buffer_if_due` has added, if it added something."""
        if not answers:
            return
        [[workers, load_of_owners, *classes]] = answers
        (interactive, first_interactive), (bulk, first_bulk) = classes
        owners, sums = load_of_owners[::2], load_of_owners[1::2]
        self.latest = OpenWork(
            [*self._jobs(first_interactive, True), *self._jobs(first_bulk, False)],
            interactive,
            bulk,
            {owner.decode(): int(left) for owner, left in zip(owners, sums, strict=True)},
            parse_workers(workers),
        )
        self._due_at = self._clock() + self.max_age_s

    def _jobs(self, flat: Sequence[bytes], is_interactive: bool) -> Iterable[OpenJob]:
        for job, posted_at, entry in zip(flat[::3], flat[1::3], flat[2::3], strict=True):
            left, count, steps, model, owner = entry.decode().split(" ", 4)
            cost = self._cards[model].cost_per_image_step if model in self._cards else 1
            yield OpenJob(
                id=job.decode(),
                owner=owner,
                model=model,
                is_interactive=is_interactive,
                count=int(count),
                steps=int(steps),
                posted_at=float(posted_at),
                left=int(left) // cost,
                cost=cost,
            )
