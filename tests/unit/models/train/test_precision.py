from __future__ import annotations

import time

import pytest
import torch

from models.train.precision import PRECISIONS, autocast, faster_precision


@pytest.mark.parametrize("fast", PRECISIONS)
def test_the_faster_arithmetic_is_chosen(fast):
    assert (
        faster_precision(lambda p: time.sleep(0.001 if p == fast else 0.03), torch.device("cpu"))
        == fast
    )


def test_only_bf16_changes_the_arithmetic():
    a = torch.randn(8, 8)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with autocast(precision, torch.device("cpu")):
            assert (a @ a).dtype == dtype
