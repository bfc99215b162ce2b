"""The fused kernel without a GPU: Triton interprets it on the CPU."""

from __future__ import annotations

import pytest

from tests.support.fused import differences

pytest.importorskip("triton", reason="Triton is not made for this system")


@pytest.mark.parametrize("shape", [(1, 4, 6), (3, 5, 7), (1, 28, 28), (3, 16, 16)], ids=str)
def test_the_kernel_has_the_bits_of_the_operations_one_by_one(interpreted, shape):
    assert interpreted(differences, shape, 0.5) == [0, 0]


@pytest.mark.parametrize("outputs", [float("nan"), float("inf"), float("-inf")])
def test_the_kernel_keeps_output_that_is_not_finite(interpreted, outputs):
    assert interpreted(differences, (1, 4, 6), outputs) == [0, 0]
