"""The fused kernel without a GPU: Triton interprets it on the CPU, and compiles it for GPUs that are not here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from tests.support.fused import differences, machine_code

pytest.importorskip("triton", reason="Triton is not made for this system")


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Callable[..., object]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as aside:
            yield lambda *task: aside.submit(*task).result()


@pytest.mark.parametrize("shape", [(1, 4, 6), (3, 5, 7), (1, 28, 28), (3, 16, 16)], ids=str)
def test_it_does_to_the_bit_what_the_operations_one_by_one_do(interpreted, shape):
    assert interpreted(differences, shape, 0.5) == [0, 0]


@pytest.mark.parametrize("outputs", [float("nan"), float("inf"), float("-inf")])
def test_it_keeps_what_is_not_finite(interpreted, outputs):
    assert interpreted(differences, (1, 4, 6), outputs) == [0, 0]


@pytest.mark.parametrize("capability", [80, 90])
def test_it_compiles_for_gpus_that_are_not_here(capability, tmp_path, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as aside:
        assert len(aside.submit(machine_code, capability).result()) > 1000
