"""The choice of the faster arithmetic, by a clock that the steps move."""

from __future__ import annotations

import pytest
import torch

from models.train.precision import PRECISIONS, autocast, faster_precision
from tests.support.clock import SimulatedClock


@pytest.mark.parametrize("fast", PRECISIONS)
def test_the_faster_arithmetic_is_chosen(fast):
    clock = SimulatedClock()

    def step(precision: str) -> None:
        clock.pass_s(0.001 if precision == fast else 0.03)

    assert faster_precision(step, torch.device("cpu"), clock) == fast


def test_only_bf16_changes_the_arithmetic():
    a = torch.randn(8, 8)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with autocast(precision, torch.device("cpu")):
            assert (a @ a).dtype == dtype
