"""Several models in one worker, in calculated time."""

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
    """Chains that never end: numbers of interactive and bulk ones."""

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
        return self.batch_sizes.seconds[self.batch_sizes.size_for(places)]


def run(rounds: int, *models: Model) -> tuple[Counter[str], float]:
    """Count the steps of each model, and the seconds of all."""
    scheduler = ModelScheduler[Model]()
    steps = Counter[str]()
    seconds = 0.0
    for _ in range(rounds):
        for model, within_s in scheduler.next_steps(models):
            steps[model.name] += 1
            seconds += model.step_s(within_s)
            scheduler.note(model, model.step_s(within_s))
    return steps, seconds


@pytest.mark.parametrize("slower", [0.1, 1, 3, 100])
def test_another_models_bulk_delays_an_image_no_more_than_its_own_does(slower: float) -> None:
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


def test_models_with_only_bulk_work_step_without_a_limit() -> None:
    bulk = Model("a", bulk=64), Model("b", bulk=64)
    chosen = list(ModelScheduler[Model]().next_steps(bulk))
    assert chosen == [(model, math.inf) for model in bulk]


@pytest.mark.parametrize("slower", [0.1, 1, 15])
def test_interactive_models_have_equal_time(slower: float) -> None:
    light = Model("light", interactive=1)
    heavy = Model("heavy", interactive=64, slower=slower)
    steps, seconds = run(5000, light, heavy)
    of_light = steps["light"] * light.step_s(math.inf)
    assert abs(of_light - (seconds - of_light)) <= heavy.step_s(math.inf)


def test_a_model_without_work_has_saved_no_time_up() -> None:
    scheduler = ModelScheduler[Model]()
    one = Model("one", interactive=1)
    other = Model("other", interactive=1)
    for _ in range(100):
        list(scheduler.next_steps([one]))
        scheduler.note(one, 1.0)
    for model in (one, other, one, other):
        assert [due for due, _ in scheduler.next_steps([one, other])] == [model]
        scheduler.note(model, 1.0)


def test_time_is_saved_up_only_while_interactive_chains_wait() -> None:
    scheduler = ModelScheduler[Model]()
    mine = Model("mine", interactive=1)
    heavy = Model("heavy", bulk=1, slower=3)
    assert len(list(scheduler.next_steps([mine, heavy]))) == 1
    list(scheduler.next_steps([heavy]))
    assert len(list(scheduler.next_steps([mine, heavy]))) == 1
    assert len(list(scheduler.next_steps([mine, heavy]))) == 2
