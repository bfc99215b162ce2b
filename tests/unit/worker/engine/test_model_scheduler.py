"""Several models in one worker, in a time that passes by calculation."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import pytest

from worker.engine.batch_sizes import BatchSizes
from worker.engine.model_scheduler import ModelScheduler
from worker.jobs.policy import FLOOR, STRETCH

SECONDS = {1: 0.005, 2: 0.0065, 4: 0.009, 8: 0.014, 16: 0.022, 32: 0.038, 64: 0.065}


@dataclass(eq=False)
class Model:
    """So many chains that never end."""

    name: str
    interactive: int = 0
    bulk: int = 0
    slower: float = 1.0

    def __post_init__(self) -> None:
        self.batch_sizes = BatchSizes(
            {size: self.slower * seconds for size, seconds in SECONDS.items()}
        )

    @property
    def is_interactive(self) -> bool:
        return self.interactive > 0

    @property
    def lone_s(self) -> float:
        return self.batch_sizes.seconds[1]

    def step_s(self, within_s: float) -> float:
        places = self.batch_sizes.places(self.interactive, self.bulk, within_s)
        return self.batch_sizes.seconds[self.batch_sizes.holding(places)]


def run(turns: int, *models: Model) -> tuple[Counter[str], float]:
    """Steps of each model, and the seconds of all."""
    order, steps, seconds = ModelScheduler[Model](), Counter[str](), 0.0
    for _ in range(turns):
        for model, within_s in order.of(models):
            steps[model.name] += 1
            seconds += model.step_s(within_s)
            order.note(model, model.step_s(within_s))
    return steps, seconds


@pytest.mark.parametrize("slower", [0.1, 1, 3, 100])
def test_who_waits_for_an_image_is_held_up_by_another_models_bulk_no_more_than_by_its_own(
    slower: float,
) -> None:
    steps, seconds = run(1000, Model("mine", interactive=1), Model("bulk", bulk=128, slower=slower))
    assert steps["mine"] == 1000
    stretch = seconds / (1000 * SECONDS[1])
    assert 1 + 1 / FLOOR < stretch <= STRETCH + 0.01, "and bulk work moves"


def test_bulk_of_several_models_takes_turns_however_heavy_they_are() -> None:
    steps, seconds = run(
        3000,
        Model("mine", interactive=1),
        Model("light", bulk=64),
        Model("heavy", bulk=64, slower=40),
    )
    assert abs(steps["light"] - steps["heavy"]) <= 1
    assert steps["heavy"] > 50
    assert seconds / (3000 * SECONDS[1]) <= STRETCH + 0.1


def test_where_nobody_waits_all_step_as_they_like() -> None:
    bulk = Model("a", bulk=64), Model("b", bulk=64)
    assert list(ModelScheduler[Model]().of(bulk)) == [(model, math.inf) for model in bulk]


@pytest.mark.parametrize("slower", [0.1, 1, 15])
def test_models_that_somebody_waits_for_have_equal_time(slower: float) -> None:
    light, heavy = Model("light", interactive=1), Model("heavy", interactive=64, slower=slower)
    steps, seconds = run(5000, light, heavy)
    of_light = steps["light"] * light.step_s(math.inf)
    assert abs(of_light - (seconds - of_light)) <= heavy.step_s(math.inf)


def test_a_model_that_nobody_waited_for_has_saved_no_time_up() -> None:
    turns, one, other = (
        ModelScheduler[Model](),
        Model("one", interactive=1),
        Model("other", interactive=1),
    )
    for _ in range(100):
        list(turns.of([one]))
        turns.note(one, 1.0)
    for model in (one, other, one, other):
        assert [due for due, _ in turns.of([one, other])] == [model]
        turns.note(model, 1.0)


def test_time_is_not_saved_up_while_nobody_waits() -> None:
    turns, mine, heavy = (
        ModelScheduler[Model](),
        Model("mine", interactive=1),
        Model("heavy", bulk=1, slower=3),
    )
    assert len(list(turns.of([mine, heavy]))) == 1
    list(turns.of([heavy]))
    assert len(list(turns.of([mine, heavy]))) == 1
    assert len(list(turns.of([mine, heavy]))) == 2
