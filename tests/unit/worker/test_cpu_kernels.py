"""worker/cpu_kernels.c: what PyTorch and NumPy compute, and the same bits for every number of images and threads."""

import logging
import platform
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from models import checkpoint
from models.catalog import SHIPPED
from models.unet import NormSiLU
from worker import cpu_kernels
from worker.cpu_kernels import CompiledAdvance, CompiledNorm, library
from worker.network import BY_PYTORCH, COMPILED, ServedNetwork, kernels_on_a_cpu
from worker.rows import next_state

DTYPES = [torch.float32, torch.bfloat16]
compiled = pytest.mark.skipif(not library(), reason="worker/cpu_kernels.c is not compiled")
shapes = st.tuples(
    st.integers(1, 5),  # B
    st.sampled_from([1, 2, 8, 32]),  # groups
    st.sampled_from([1, 2, 3, 6, 8]),  # channels of a group
    st.integers(1, 9),  # H
    st.integers(1, 9),  # W
)


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def case(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype, kind: type[nn.GroupNorm] = NormSiLU
) -> tuple[Tensor, nn.GroupNorm]:
    B, groups, D, H, W = shape
    torch.manual_seed(B + groups + D + H + W)
    norm = kind(groups, groups * D, eps=1e-5)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = 3 * torch.randn(B, groups * D, H, W) + 1
    return x.to(dtype).to(memory_format=torch.channels_last), norm.to(dtype)


def exact(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    groups = x.double().unflatten(1, (norm.num_groups, -1))
    variance, mean = torch.var_mean(groups, dim=(2, 3, 4), correction=0, keepdim=True)
    y = ((groups - mean) / (variance + norm.eps).sqrt()).flatten(1, 2)
    y = y * norm.weight.double()[:, None, None] + norm.bias.double()[:, None, None]
    return F.silu(y) if isinstance(norm, NormSiLU) else y


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="compiled on Linux")
def test_it_is_compiled_here():
    assert library(), "install gcc 12 or newer, touch hatch_build.py, and make .venv/.installed-test"


@compiled
@pytest.mark.parametrize("kind", [nn.GroupNorm, NormSiLU])
@given(shape=shapes)
def test_float32_is_the_exact_result_within_a_few_roundings(kind: type[nn.GroupNorm], shape: tuple[int, int, int, int, int]):
    x, norm = case(shape, torch.float32, kind)
    out = CompiledNorm(norm)(x)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out.double(), exact(x, norm), rtol=1e-5, atol=2e-5)


@compiled
@pytest.mark.parametrize("kind", [nn.GroupNorm, NormSiLU])
@given(shape=shapes)
def test_bf16_is_the_exact_result_rounded_once(kind: type[nn.GroupNorm], shape: tuple[int, int, int, int, int]):
    x, norm = case(shape, torch.bfloat16, kind)
    out, expected = CompiledNorm(norm)(x).double(), exact(x, norm)
    assert ((out - expected).abs() <= 2**-8 * expected.abs() + 2e-5).all()


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
@given(shape=shapes, threads=st.integers(1, 3))
def test_an_image_has_the_same_bits_alone_and_with_others_by_any_number_of_threads(
    dtype: torch.dtype, shape: tuple[int, int, int, int, int], threads: int
):
    x, norm = case(shape, dtype)
    ours = CompiledNorm(norm)
    torch.set_num_threads(1)
    alone = torch.cat([ours(image) for image in x.split(1)])
    torch.set_num_threads(threads)
    assert torch.equal(ours(x), alone)


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_in_its_image_and_is_not_finite_after(dtype: torch.dtype, broken: float):
    x, norm = case((3, 2, 8, 4, 4), dtype)
    ours = CompiledNorm(norm)
    before = ours(x)
    x[1, 0, 2, 3] = broken
    after = ours(x)
    assert torch.equal(after[::2], before[::2])
    assert after[1, :8].isnan().all()


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_holds_for_the_smallest_and_the_largest(dtype: torch.dtype):
    norm = NormSiLU(1, 1, eps=1e-5).to(dtype)
    nn.init.constant_(norm.weight, 1e4)
    x = torch.linspace(-1, 1, 64).to(dtype).view(1, 1, 8, 8)
    torch.testing.assert_close(CompiledNorm(norm)(x).double(), exact(x, norm), rtol=2**-7, atol=1e-30)


@compiled
def test_a_tensor_laid_out_by_channels_is_laid_out_anew():
    x, norm = case((2, 8, 4, 5, 3), torch.float32)
    assert torch.equal(CompiledNorm(norm)(x.contiguous()), CompiledNorm(norm)(x))


@compiled
@given(seed=st.integers(0, 2**32 - 1), remembers=st.booleans(), noisy=st.booleans(), size=st.integers(1, 40))
def test_chains_take_their_rows_as_by_numpy(seed: int, remembers: bool, noisy: bool, size: int):
    rng = np.random.default_rng(seed)
    slots, depth, B = 5, 3, 3
    x, x_0_hat, noise = (
        rng.standard_normal(shape, np.float32) for shape in [(slots, 1, 1, size)] * 2 + [(slots, depth, 1, 1, size)]
    )
    out = rng.standard_normal((B, 1, 1, size), np.float32)
    out[0, ..., 0] = rng.choice(np.array([np.nan, np.inf, -np.inf, 1e30], np.float32))
    columns = rng.standard_normal((12, B))
    columns[0], columns[4] = rng.permutation(slots)[:B], rng.integers(0, 1000, B)
    columns[7] = 1  # bound
    columns[10] *= remembers
    columns[11] *= noisy
    own, draw = columns[0].astype(int), columns[4].astype(int)
    row = columns[5:, :, None, None, None].astype(np.float32)
    expected_x, expected_x_0_hat = x.copy(), x_0_hat.copy()
    with np.errstate(all="ignore"):
        after = next_state(
            tuple(row), x[own], out, x_0_hat[own] if remembers else None, noise[own, draw % depth] if noisy else None
        )
    expected_x[own], expected_x_0_hat[own] = after
    tensors = [torch.from_numpy(array) for array in (x, x_0_hat, noise)]
    CompiledAdvance(*tensors)(columns, torch.from_numpy(out))
    np.testing.assert_array_equal(x, expected_x)
    np.testing.assert_array_equal(x_0_hat, expected_x_0_hat)


@compiled
def test_its_threads_are_torchs():
    library()
    mapped = set(re.findall(r"/\S*/lib(?:gomp|iomp5|omp)\b\S*", Path("/proc/self/maps").read_text()))
    assert len(mapped) == 1


def test_without_the_library_the_network_is_pytorchs_and_the_log_says_how_to_get_it(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(cpu_kernels, "LIBRARY", tmp_path / "none.so")
    library.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            net = ServedNetwork(checkpoint.load(SHIPPED / "fashion-mnist-28"), torch.device("cpu"), "fp32")
        assert net.kernels == kernels_on_a_cpu() == BY_PYTORCH
        assert [record.message for record in caplog.records if "install GCC 12" in record.message] != []
        assert net(torch.zeros(1, 1, 28, 28), torch.tensor([5])).isfinite().all()
    finally:
        library.cache_clear()


@compiled
def test_the_name_of_its_kernels_tells_calibrations_apart():
    assert kernels_on_a_cpu() == COMPILED != BY_PYTORCH
