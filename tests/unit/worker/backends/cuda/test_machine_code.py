"""The kernels as machine code of GPUs that are not here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torch import nn

from tests.support import fused
from tests.support import kernels as support
from tests.support.aside import Aside, aside

pytest.importorskip("triton", reason="Triton is not made for this system")

PLAIN = {"SIDE": 3, "STRIDE": 1, "PAD": 1, "UP": 0}
PLAIN |= dict.fromkeys(("FEATURES", "ADDED", "PLANES"), False)


def convolution_of(kind: str) -> dict[str, str]:
    """Give the types of a convolution's arguments, for tensors of one kind."""
    tensors = ("x", "weight", "features", "added", "first", "second", "out")
    return dict.fromkeys(tensors, kind) | {"bias": "*fp32"}


def channels_of(count: int) -> dict[str, int]:
    return dict.fromkeys(("C", "C1", "C2"), count)


def tile_of(rows: int, columns: int, depth: int) -> dict[str, int]:
    return {"ROWS": rows, "COLUMNS": columns, "DEPTH": depth}


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aside]:
    cache = str(tmp_path_factory.mktemp("triton"))
    with aside(TRITON_INTERPRET="0", TRITON_CACHE_DIR=cache) as calls:
        yield calls


@pytest.fixture
def machine_code(compiler: Aside) -> Callable[..., list[str]]:
    return lambda *kernel, **options: compiler(support.machine_code, *kernel, **options)


def convolution_code(
    machine_code: Callable[..., list[str]],
    kind: str,
    constants: dict[str, Any],
    capability: int,
    warps: int,
    stages: int,
) -> list[str]:
    types = convolution_of(kind)
    options = {"num_warps": warps, "num_stages": stages}
    return machine_code("convolution", types, PLAIN | constants, capability, **options)


@pytest.mark.parametrize("capability", [80, 90])
def test_a_fused_step_compiles(compiler, capability):
    assert len(compiler(fused.machine_code, capability)) > 1000


@pytest.mark.parametrize("capability", [80, 90])
def test_a_convolution_compiles_for_the_tensor_cores(machine_code, capability):
    constants = channels_of(64) | tile_of(64, 64, 64) | {"SOURCES": 1, "PRECISION": "ieee"}
    code = convolution_code(machine_code, "*bf16", constants, capability, warps=4, stages=3)
    on_tensor_cores = "HGMMA" if capability == 90 else "HMMA"
    assert any(line.startswith(on_tensor_cores) for line in code)


@pytest.mark.parametrize("capability", [80, 90])
def test_the_other_layers_compile(machine_code, capability):
    shared = {"C1": 64, "C": 96, "GROUPS": 32, "chunks": 2, "TWO": True}
    types = dict.fromkeys(("first", "second", "out"), "*bf16")
    types |= dict.fromkeys(("sums", "weight", "bias"), "*fp32") | {"eps": "fp32"}
    moments = shared | {"HELD": 32, "PART": 4, "ROWS": 32, "CHUNK": 128}
    assert machine_code("moments", types, moments, capability)
    normalise = shared | {"WIDE": 128, "SILU": True, "ROWS": 64}
    assert machine_code("normalise", types, normalise, capability)
    patches = {"K": 32, "ROWS": 64}
    assert machine_code("patches", {"x": "*fp32", "out": "*bf16"}, patches, capability)


def test_float32_is_three_products_on_the_tensor_cores(machine_code):
    constants = channels_of(32) | tile_of(128, 64, 32) | {"SOURCES": 0, "PRECISION": "tf32x3"}
    code = convolution_code(machine_code, "*fp32", constants, 90, warps=4, stages=3)
    assert sum("TF32" in line for line in code) % 3 == 0
    assert any("TF32" in line for line in code)


def test_nvidias_assembler_gets_a_convolution_with_a_shortcut_right(machine_code):
    """The stack pointer must not be used as a number.

    It was, while the sums were three loops, and an H200 reported "illegal memory access".
    """
    layer = nn.Conv2d(64, 64, 3)
    rows, columns, depth, warps, stages = support.tile(layer, [128, 64], 196, 232448)
    assert (rows, columns, depth) == (64, 16, 64)
    constants = channels_of(64) | {"C1": 128, "SOURCES": 2, "PRECISION": "ieee"}
    constants |= tile_of(rows, columns, depth)
    code = convolution_code(machine_code, "*bf16", constants, 90, warps, stages)
    of_stack_pointer = [line for line in code if re.search(r"\bR1\b", line)]
    assert [line for line in of_stack_pointer if not re.search(r"LDC R1,|\[R1", line)] == []


@pytest.mark.parametrize("depth", [128, 64])
def test_a_sum_of_one_step_begins_as_that_of_several(compiler, depth):
    """The bias is not added at the end.

    Otherwise Triton lets a sum of one step begin with it, and tiles of another depth give other
    bits.
    """
    constants = channels_of(128) | tile_of(64, 64, depth)
    constants |= {"SOURCES": 0, "PRECISION": "ieee", "SIDE": 1}
    types = convolution_of("*bf16")
    code = compiler(support.intermediate_code, "convolution", types, PLAIN | constants)
    assert sum("tt.dot" in line for line in code) == 1
    assert [line for line in code if "arith.addf" in line] == []
