"""What waits for each model, from the books and from what workers say."""

from __future__ import annotations

import pytest

from app.operation.waiting import image_seconds, image_steps_left, measured_paces
from tests.support.cards import card_of
from worker.jobs.worker_registry import ModelInfo, WorkerInfo


def worker(name: str, slowed: float = 1.0, **image_steps_per_s: float) -> WorkerInfo:
    models = {
        model: ModelInfo("fp32", "pytorch", 1, {1: 1 / rate})
        for model, rate in image_steps_per_s.items()
    }
    return WorkerInfo(name, "cpu", models, slowed)


def test_image_steps_are_added_up_by_model_and_a_model_without_jobs_has_none():
    entries = [b"150 3 50 small ann", b"10 1 10 small bob", b"7 1 7 large ann"]
    cards = {name: card_of(name) for name in ("small", "idle")}
    assert image_steps_left(entries, cards) == {"small": 160, "idle": 0, "large": 7}


def test_image_steps_of_a_model_that_costs_more_are_counted_singly():
    cards = {"large": card_of("large", gflop_per_image_step=6)}
    assert image_steps_left([b"500 1 50 large ann"], cards) == {"large": 50}


def test_the_pace_is_the_mean_of_the_workers_that_have_the_model():
    workers = [worker("a", small=100), worker("b", small=300, large=50)]
    assert measured_paces(workers) == pytest.approx({"small": 200, "large": 50})


def test_the_pace_is_the_present_one_of_a_worker_that_is_slowed():
    assert measured_paces([worker("a", slowed=4, small=100)]) == pytest.approx({"small": 25})


def test_seconds_are_those_of_one_worker():
    cards = {"small": card_of("small")}
    assert image_seconds({"small": 160}, {"small": 40}, cards) == {"small": 4}


def test_a_model_that_no_worker_has_run_is_guessed_from_its_cost():
    cards = {"large": card_of("large", gflop_per_image_step=50)}
    assert image_seconds({"large": 8}, {}, cards) == pytest.approx({"large": 4})


def test_a_model_whose_cost_is_rounded_to_nothing_still_waits():
    cards = {"tiny": card_of("tiny", gflop_per_image_step=0)}
    assert image_seconds({"tiny": 1}, {}, cards)["tiny"] > 0


def test_a_model_that_has_neither_a_pace_nor_a_card_has_no_seconds():
    assert image_seconds({"gone": 5}, {}, {}) == {}
