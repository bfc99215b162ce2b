"""The GPU's kernels without a GPU: Triton interprets them on the CPU."""

from __future__ import annotations

from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import replace

import pytest
from torch import nn

from tests.support import kernels as support
from tests.support.networks import TINY

pytest.importorskip("triton", reason="Triton is not made for this system")

LIKE_THE_SHIPPED = replace(
    TINY, sample_size=4, block_out_channels=(16, 32), norm_num_groups=8, downsample_padding=0
)
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


@pytest.mark.parametrize("busy", [support.FEW, support.MANY])
@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.parametrize(
    ("stride", "pad", "up"), [(1, 1, False), (2, 1, False), (2, 0, False), (1, 1, True)]
)
def test_a_convolution_is_pytorchs_with_all_that_is_added(
    interpreted, stride, pad, up, extras, busy
):
    assert interpreted(support.convolution, stride, pad, up, extras, busy) <= 1e-5


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(("channels", "groups"), [((32,), 8), ((64, 32), 32), ((16, 8), 3)])
def test_a_normalisation_is_pytorchs_of_one_tensor_and_of_two(interpreted, channels, groups, silu):
    assert interpreted(support.normalised, channels, groups, silu) <= 1e-5


@pytest.mark.parametrize(
    "cfg", [LIKE_THE_SHIPPED, OTHERWISE], ids=["like the shipped", "otherwise"]
)
def test_the_network_is_the_loaded_one_in_any_tiles(interpreted, cfg):
    """The last bits differ on the CPU, as NumPy's products do. tests/gpu checks the bits."""
    assert max(interpreted(support.network, cfg)) <= 2e-5


@pytest.mark.parametrize("memory", [65536, 101376, 166912, 232448])
@pytest.mark.parametrize("count", [3, 16, 48, 128, 256, 768])
@pytest.mark.parametrize("channels", [16, 32, 96, 128])
def test_every_layer_has_a_tile_on_gpus_with_little_shared_memory(channels, count, memory):
    rows, columns, depth, _, stages = support.tile(nn.Conv2d(channels, count, 3), [], 1024, memory)
    assert stages * (rows + columns) * depth * 2 <= memory


def test_a_failed_compilation_leaves_no_mode_behind(monkeypatch: pytest.MonkeyPatch):
    """Triton's mode stays in the context if it ends with an error."""
    from worker.backends.cuda.layers import compile_side_by_side

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
