"""The kernels as machine code of GPUs that are not here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
from torch import nn

from tests.support import fused
from tests.support import kernels as support
from tests.support.aside import Aside, aside

pytest.importorskip("triton", reason="Triton is not made for this system")

PLAIN = {
    "SIDE": 3,
    "STRIDE": 1,
    "PAD": 1,
    "UP": 0,
    "FEATURES": False,
    "ADDED": False,
    "PLANES": False,
}


def convolution_of(kind: str) -> dict[str, str]:
    return dict.fromkeys(("x", "weight", "features", "added", "first", "second", "out"), kind) | {
        "bias": "*fp32"
    }


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aside]:
    with aside(
        TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path_factory.mktemp("triton"))
    ) as calls:
        yield calls


@pytest.fixture
def machine_code(compiler: Aside) -> Callable[..., list[str]]:
    return lambda *kernel, **options: compiler(support.machine_code, *kernel, **options)


@pytest.mark.parametrize("capability", [80, 90])
def test_a_fused_step_compiles(compiler, capability):
    assert len(compiler(fused.machine_code, capability)) > 1000


@pytest.mark.parametrize("capability", [80, 90])
def test_the_layers_compile(machine_code, capability):
    sizes = {
        "C": 64,
        "C1": 64,
        "C2": 64,
        "SOURCES": 1,
        "PRECISION": "ieee",
        "ROWS": 64,
        "COLUMNS": 64,
        "DEPTH": 64,
    }
    code = machine_code(
        "convolution", convolution_of("*bf16"), PLAIN | sizes, capability, num_warps=4, num_stages=3
    )
    assert any(
        line.startswith("HGMMA" if capability == 90 else "HMMA") for line in code
    )  # on the tensor cores
    shared = {"C1": 64, "C": 96, "GROUPS": 32, "chunks": 2, "TWO": True}
    types = (
        dict.fromkeys(("first", "second", "out"), "*bf16")
        | dict.fromkeys(("sums", "weight", "bias"), "*fp32")
        | {"eps": "fp32"}
    )
    assert machine_code(
        "moments", types, shared | {"HELD": 32, "PART": 4, "ROWS": 32, "CHUNK": 128}, capability
    )
    assert machine_code(
        "normalise", types, shared | {"WIDE": 128, "SILU": True, "ROWS": 64}, capability
    )
    assert machine_code(
        "patches", {"x": "*fp32", "out": "*bf16"}, {"K": 32, "ROWS": 64}, capability
    )


def test_float32_is_three_products_on_the_tensor_cores(machine_code):
    sizes = {
        "C": 32,
        "C1": 32,
        "C2": 32,
        "SOURCES": 0,
        "PRECISION": "tf32x3",
        "ROWS": 128,
        "COLUMNS": 64,
        "DEPTH": 32,
    }
    code = machine_code(
        "convolution", convolution_of("*fp32"), PLAIN | sizes, 90, num_warps=4, num_stages=3
    )
    assert sum("TF32" in line for line in code) % 3 == 0
    assert any("TF32" in line for line in code)


def test_nvidias_assembler_gets_a_convolution_with_a_shortcut_right(machine_code):
    """It took the stack pointer for a number here, while the sums were three loops: an H200 said "illegal memory access"."""
    rows, columns, depth, warps, stages = support.tile(nn.Conv2d(64, 64, 3), [128, 64], 196, 232448)
    assert (rows, columns, depth) == (64, 16, 64)
    sizes = {"C": 64, "C1": 128, "C2": 64, "SOURCES": 2, "PRECISION": "ieee"}
    tiles = {"ROWS": rows, "COLUMNS": columns, "DEPTH": depth}
    code = machine_code(
        "convolution",
        convolution_of("*bf16"),
        PLAIN | sizes | tiles,
        90,
        num_warps=warps,
        num_stages=stages,
    )
    assert [
        line for line in code if re.search(r"\bR1\b", line) and not re.search(r"LDC R1,|\[R1", line)
    ] == []


@pytest.mark.parametrize("depth", [128, 64])
def test_a_sum_of_one_step_begins_as_that_of_several(compiler, depth):
    """Triton let the sum of one begin with the bias that was to be added to it: tiles of either depth gave other bits."""
    sizes = {
        "C": 128,
        "C1": 128,
        "C2": 128,
        "SOURCES": 0,
        "PRECISION": "ieee",
        "ROWS": 64,
        "COLUMNS": 64,
        "DEPTH": depth,
    }
    code = compiler(
        support.intermediate_code,
        "convolution",
        convolution_of("*bf16"),
        PLAIN | sizes | {"SIDE": 1},
    )
    assert sum("tt.dot" in line for line in code) == 1
    assert [line for line in code if "arith.addf" in line] == []
