"""Which models step next, where one worker serves several: one's work must not hold up who waits for another's images.

Within a model the scheduler and the batch_sizes see to that; between models there is no common batch, only the one thread's time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Generic, Protocol, TypeVar

from worker.jobs.policy import STRETCH


class SteppingModel(Protocol):
    """`is_interactive`: interactive images are in it. `lone_s`: what a step of one image takes."""

    @property
    def is_interactive(self) -> bool: ...
    @property
    def lone_s(self) -> float: ...


M = TypeVar("M", bound=SteppingModel)


class ModelScheduler(Generic[M]):
    """Models that somebody waits for have equal time, not equal steps: the one that has had least is next.

    Meanwhile models with nothing but bulk work have the time by which a step may be stretched, one at a time. What is too short
    for a step is saved up: a heavy model's comes seldom.
    """

    def __init__(self) -> None:
        self._spent_s: dict[M, float] = {}  # on those that somebody waits for
        self._saved_s = 0.0
        self._served: list[M] = []  # of bulk work only; the one that has waited longest is next

    def of(self, busy: Sequence[M]) -> Iterator[tuple[M, float]]:
        """Those that step in this turn, each with the seconds that its batch may take."""
        interactive = [model for model in busy if model.is_interactive]
        least_s = min(
            (self._spent_s[model] for model in interactive if model in self._spent_s), default=0.0
        )
        self._spent_s = {model: self._spent_s.get(model, least_s) for model in interactive}
        bulk = [model for model in busy if model not in interactive]
        if not interactive:
            self._saved_s = 0.0
            yield from ((model, math.inf) for model in bulk)
            return
        now = min(interactive, key=lambda model: self._spent_s[model])
        yield now, math.inf
        if not bulk:
            self._saved_s = 0.0
            return
        bulk.sort(key=lambda model: self._served.index(model) if model in self._served else -1)
        earned_s = (STRETCH - 1) * now.lone_s
        self._saved_s = min(self._saved_s + earned_s, max(earned_s, bulk[0].lone_s))
        if bulk[0].lone_s <= self._saved_s:
            spent_s, self._saved_s = self._saved_s, 0.0
            self._served = [*(model for model in self._served if model is not bulk[0]), bulk[0]]
            yield bulk[0], spent_s

    def note(self, model: M, seconds: float) -> None:
        """That its step took so long."""
        if model in self._spent_s:
            self._spent_s[model] += seconds
