"""The GPU's kernels without a GPU: Triton interprets them on the CPU, and compiles them for GPUs that are not here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import replace
from multiprocessing import get_context

import pytest
from torch import nn

from tests.support import kernels as support
from tests.support.networks import TINY

pytest.importorskip("triton", reason="Triton is not made for this system")
Aside = Callable[..., object]

LIKE_THE_SHIPPED = replace(TINY, sample_size=4, block_out_channels=(16, 32), norm_num_groups=8, downsample_padding=0)
OTHERWISE = replace(
    TINY,
    sample_size=4,
    in_channels=3,
    out_channels=3,
    block_out_channels=(32, 16),
    down_block_types=("AttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D"),
    attention_head_dim=1,
)
PLAIN = {"SIDE": 3, "STRIDE": 1, "PAD": 1, "UP": 0, "FEATURES": False, "ADDED": False, "PLANES": False}


def convolution_of(kind: str) -> dict[str, str]:
    return dict.fromkeys(("x", "weight", "features", "added", "first", "second", "out"), kind) | {"bias": "*fp32"}


def aside() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Aside]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        with aside() as process:
            yield lambda *task: process.submit(*task).result()


@pytest.fixture(scope="module")
def machine_code(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., list[str]]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRITON_INTERPRET", raising=False)
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        with aside() as process:
            yield lambda *task, **options: process.submit(support.machine_code, *task, **options).result()


@pytest.mark.parametrize("multiprocessors", [support.FEW, support.MANY])
@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.parametrize(("stride", "pad", "up"), [(1, 1, False), (2, 1, False), (2, 0, False), (1, 1, True)])
def test_a_convolution_is_pytorchs_with_all_that_is_added_to_it(interpreted, stride, pad, up, extras, multiprocessors):
    assert interpreted(support.convolution, stride, pad, up, extras, multiprocessors) <= 1e-5


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(("channels", "groups"), [((32,), 8), ((64, 32), 32), ((16, 8), 3)])
def test_a_normalisation_is_pytorchs_of_one_tensor_or_of_two_side_by_side(interpreted, channels, groups, silu):
    assert interpreted(support.normalised, channels, groups, silu) <= 1e-5


@pytest.mark.parametrize("cfg", [LIKE_THE_SHIPPED, OTHERWISE], ids=["like the shipped", "otherwise"])
def test_the_network_is_the_one_that_was_loaded_in_whatever_tiles(interpreted, cfg):
    """On the CPU they differ in the last bits, as NumPy's products do; tests/gpu has the bits."""
    assert max(interpreted(support.network, cfg)) <= 2e-5


@pytest.mark.parametrize("memory", [65536, 101376, 166912, 232448])
@pytest.mark.parametrize("count", [3, 16, 48, 128, 256, 768])
@pytest.mark.parametrize("channels", [16, 32, 96, 128])
def test_every_layer_has_a_tile_on_gpus_with_little_shared_memory_too(channels, count, memory):
    rows, columns, depth, _, stages = support.tile(nn.Conv2d(channels, count, 3), [], 1024, memory)
    assert stages * (rows + columns) * depth * 2 <= memory


def test_a_kernel_that_cannot_be_compiled_is_nobody_elses_trouble(monkeypatch: pytest.MonkeyPatch):
    """Triton's mode, when it ends with an error, stays what the context has."""
    from worker.gpu_layers import compile_side_by_side

    mode: ContextVar[object] = ContextVar("mode", default=None)

    class Failing(AbstractContextManager):
        def __init__(self, executor: object) -> None:
            mode.set(self)

        def __exit__(self, *_: object) -> None:
            raise ZeroDivisionError

    monkeypatch.setattr("triton.AsyncCompileMode", Failing)
    with pytest.raises(ZeroDivisionError):
        compile_side_by_side(lambda: None)
    assert mode.get() is None


@pytest.mark.parametrize("capability", [80, 90])
def test_they_compile_for_gpus_that_are_not_here(machine_code, capability):
    sizes = {"C": 64, "C1": 64, "C2": 64, "SOURCES": 1, "PRECISION": "ieee", "ROWS": 64, "COLUMNS": 64, "DEPTH": 64}
    code = machine_code("convolution", convolution_of("*bf16"), PLAIN | sizes, capability, num_warps=4, num_stages=3)
    assert any(line.startswith("HGMMA" if capability == 90 else "HMMA") for line in code)  # on the tensor cores
    shared = {"C1": 64, "C": 96, "GROUPS": 32, "chunks": 2, "TWO": True}
    types = (
        dict.fromkeys(("first", "second", "out"), "*bf16") | dict.fromkeys(("sums", "weight", "bias"), "*fp32") | {"eps": "fp32"}
    )
    assert machine_code("moments", types, shared | {"HELD": 32, "PART": 4, "ROWS": 32, "CHUNK": 128}, capability)
    assert machine_code("normalise", types, shared | {"WIDE": 128, "SILU": True, "ROWS": 64}, capability)
    assert machine_code("patches", {"x": "*fp32", "out": "*bf16"}, {"K": 32, "ROWS": 64}, capability)


def test_float32_is_three_products_on_the_tensor_cores(machine_code):
    sizes = {"C": 32, "C1": 32, "C2": 32, "SOURCES": 0, "PRECISION": "tf32x3", "ROWS": 128, "COLUMNS": 64, "DEPTH": 32}
    code = machine_code("convolution", convolution_of("*fp32"), PLAIN | sizes, 90, num_warps=4, num_stages=3)
    assert sum("TF32" in line for line in code) % 3 == 0
    assert any("TF32" in line for line in code)


def test_nvidias_assembler_gets_a_convolution_with_a_shortcut_right(machine_code):
    """It took the stack pointer for a number here, while the sums were three loops: an H200 said "illegal memory access"."""
    rows, columns, depth, warps, stages = support.tile(nn.Conv2d(64, 64, 3), [128, 64], 196, 232448)
    assert (rows, columns, depth) == (64, 16, 64)
    sizes = {"C": 64, "C1": 128, "C2": 64, "SOURCES": 2, "PRECISION": "ieee"}
    tiles = {"ROWS": rows, "COLUMNS": columns, "DEPTH": depth}
    code = machine_code("convolution", convolution_of("*bf16"), PLAIN | sizes | tiles, 90, num_warps=warps, num_stages=stages)
    assert [line for line in code if re.search(r"\bR1\b", line) and not re.search(r"LDC R1,|\[R1", line)] == []
