"""The choice of the models that step next, when one worker serves several.

One model's work must not delay those who wait for another's images. Within a model, the scheduler
and the batch sizes see to that. Models share no batch, only the time of one thread.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Generic, Protocol, TypeVar

from worker.jobs.policy import STRETCH


class SteppingModel(Protocol):
    """A model with chains to step."""

    @property
    def is_interactive(self) -> bool:
        """True if it has interactive chains."""

    @property
    def lone_s(self) -> float:
        """Seconds that a step of one image takes."""


M = TypeVar("M", bound=SteppingModel)


class ModelScheduler(Generic[M]):
    """Gives models with interactive chains equal time, not equal steps.

    Of these models, the one that has had the least time is next. Meanwhile the models with only
    bulk work get the time by which a step may be stretched, one model at a time. If that time is
    too short for a step of the model, it is saved up, so a heavy model steps seldom.
    """

    def __init__(self) -> None:
        # on each model with interactive chains
        self._spent_s: dict[M, float] = {}
        self._saved_s = 0.0
        # models with only bulk work, the one that stepped last at the end
        self._served: list[M] = []

    def next_steps(self, busy: Sequence[M]) -> Iterator[tuple[M, float]]:
        """Choose which of the busy models step now.

        Yields:
            A model, and how many seconds its batch may take.
        """
        interactive = [model for model in busy if model.is_interactive]
        known_s = (self._spent_s[model] for model in interactive if model in self._spent_s)
        least_s = min(known_s, default=0.0)
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
            within_s = self._saved_s
            self._saved_s = 0.0
            self._served = [*(model for model in self._served if model is not bulk[0]), bulk[0]]
            yield bulk[0], within_s

    def note(self, model: M, seconds: float) -> None:
        """Count the seconds that a step of the model took."""
        if model in self._spent_s:
            self._spent_s[model] += seconds

    def forget(self, model: M) -> None:
        """Forget a model that does not step any more, so that its memory is free."""
        self._spent_s.pop(model, None)
        self._served = [served for served in self._served if served is not model]
