"""Plans that are kept by recipe, within a number of bytes."""

from __future__ import annotations

import pytest

from models.diffusion.plans import Plan, compile_plan
from models.diffusion.schedule import Schedule
from worker.engine.plan_cache import MOST_BYTES, MOST_PLANS, PlanCache

SCHEDULE = Schedule.linear()


def make(sampler: str, steps: int, variance: str, eta: float) -> Plan:
    return compile_plan(SCHEDULE, steps, sampler, variance=variance, eta=eta)


SIZE = make("ddim", 10, "fixed_small", 0.0).size_bytes


def test_the_plan_of_a_recipe_is_made_once() -> None:
    plans = PlanCache(make)
    assert plans("ddim", 10, "fixed_small", 0.5) is plans("ddim", 10, "fixed_small", 0.5)


def test_the_plans_that_were_asked_for_last_are_kept_within_the_bytes() -> None:
    plans = PlanCache(make, most_bytes=2 * SIZE)
    first, second = (plans("ddim", 10, "fixed_small", eta) for eta in (0.1, 0.2))
    assert plans("ddim", 10, "fixed_small", 0.1) is first
    plans("ddim", 10, "fixed_small", 0.3)
    assert plans.size_bytes == 2 * SIZE
    assert plans("ddim", 10, "fixed_small", 0.1) is first
    assert plans("ddim", 10, "fixed_small", 0.2) is not second


def test_small_plans_are_kept_up_to_a_number() -> None:
    plans = PlanCache(lambda *_: make("ddim", 1, "fixed_small", 0.0))
    for number in range(MOST_PLANS + 10):
        plans("ddim", 1, "fixed_small", number / 1000)
    assert plans.size_bytes == MOST_PLANS * SIZE / 10


def test_a_plan_larger_than_the_cache_is_made_and_not_kept() -> None:
    plans = PlanCache(make, most_bytes=SIZE - 1)
    assert len(plans("ddim", 10, "fixed_small", 0.1)) == 10
    assert plans.size_bytes == 0


def test_a_clients_choice_of_eta_cannot_fill_the_memory() -> None:
    """Lists of numbers took 33 MB of a plan of 100,000 rows, and 256 such plans were kept."""
    T = 100_000
    schedule = Schedule.linear(T)
    plans = PlanCache(lambda *_: compile_plan(schedule, T, "ddim", eta=0.5))
    for number in range(20):
        plans("ddim", T, "fixed_small", number / 20)
    assert plans.size_bytes <= MOST_BYTES
    assert plans("ddim", T, "fixed_small", 0.95).size_bytes < 11e6


def test_an_unknown_plan_is_refused_and_not_kept() -> None:
    plans = PlanCache(make)
    with pytest.raises(ValueError, match="euler"):
        plans("euler", 10, "fixed_small", 0.0)
    assert plans.size_bytes == 0
