"""The average of the weights, and its warm-up."""

from __future__ import annotations

import pytest
import torch

from models.train.ema import EMA, decay_at


@pytest.mark.parametrize(("update", "decay"), [(0, 0.1), (1, 2 / 11), (90, 0.91), (10**6, 0.9999)])
def test_the_decay_warms_up(update, decay):
    assert decay_at(update, 0.9999) == pytest.approx(decay, abs=2e-5)
    assert decay_at(update, 0.9999) <= 0.9999


def test_the_first_updates_fold_in_as_the_formula_says():
    weights = {"w": torch.tensor([8.0])}
    ema = EMA(weights, 0.9999)
    weights["w"].fill_(0.0)
    ema.update(weights, 0)
    assert ema.averages["w"].item() == pytest.approx(0.1 * 8)
    weights["w"].fill_(1.1)
    ema.update(weights, 1)
    assert ema.averages["w"].item() == pytest.approx(0.8 * 2 / 11 + 1.1 * 9 / 11)


def test_the_random_start_is_forgotten_within_a_hundred_updates():
    ema = EMA({"w": torch.ones(1)}, 0.9999)
    for update in range(100):
        ema.update({"w": torch.zeros(1)}, update)
    assert ema.averages["w"].item() < 1e-6


def test_the_average_is_float32_and_its_own():
    half = {"w": torch.ones(3, dtype=torch.bfloat16)}
    ema = EMA(half, 0.9)
    assert ema.averages["w"].dtype == torch.float32
    half["w"].zero_()
    assert ema.averages["w"].tolist() == [1, 1, 1]
