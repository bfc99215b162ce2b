"""worker/backends/cpu/kernels.c against PyTorch and NumPy.

The bits are the same for every number of images and threads.
"""

import logging
import math
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from models.checkpoints import diffusers_format
from models.checkpoints.catalog import SHIPPED
from models.diffusion.noise import normal
from models.diffusion.plans import COLUMNS
from models.networks.layers import ActivatedNorm, activate
from models.networks.unet_config import Activation
from tests.support.networks import random_unet
from worker.backends.cpu import kernels
from worker.backends.cpu.kernels import CompiledNorm, library
from worker.backends.cpu.layers import pack
from worker.backends.served_network import BY_PYTORCH, COMPILED, ServedNetwork, kernels_on_a_cpu
from worker.engine import step
from worker.engine.step import ADDRESS, WIDTH

DTYPES = [torch.float32, torch.bfloat16]
CPU = torch.device("cpu")
BOUND = len(ADDRESS) + COLUMNS.index("bound")
compiled = pytest.mark.skipif(not library(), reason="worker/backends/cpu/kernels.c is not compiled")
# B, groups, channels of a group, H, W
shapes = st.tuples(
    st.integers(1, 5),
    st.sampled_from([1, 2, 8, 32]),
    st.sampled_from([1, 2, 3, 6, 8]),
    st.integers(1, 9),
    st.integers(1, 9),
)


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def case(
    shape: tuple[int, int, int, int, int],
    dtype: torch.dtype,
    kind: type[nn.GroupNorm] = ActivatedNorm,
) -> tuple[Tensor, nn.GroupNorm]:
    B, groups, D, H, W = shape
    torch.manual_seed(B + groups + D + H + W)
    norm = kind(groups, groups * D, eps=1e-5)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = 3 * torch.randn(B, groups * D, H, W) + 1
    return x.to(dtype).to(memory_format=torch.channels_last), norm.to(dtype)


def exact(x: Tensor, norm: nn.GroupNorm, modulation: Tensor | None = None) -> Tensor:
    groups = x.double().unflatten(1, (norm.num_groups, -1))
    variance, mean = torch.var_mean(groups, dim=(2, 3, 4), correction=0, keepdim=True)
    y = ((groups - mean) / (variance + norm.eps).sqrt()).flatten(1, 2)
    y = y * norm.weight.double()[:, None, None] + norm.bias.double()[:, None, None]
    if modulation is not None:
        scale, shift = modulation.double()[:, :, None, None].chunk(2, dim=1)
        y = y * (1 + scale) + shift
    return activate(y, norm.activation) if isinstance(norm, ActivatedNorm) else y


def can_compile() -> bool:
    """Tell whether hatch_build.py's compiler can do what the file needs, as GCC 12 can."""
    if sys.platform != "linux":
        return False
    clones = '__attribute__((target_clones("arch=x86-64-v4", "default"))) int f(void) { return 0; }'
    probe = clones if platform.machine() == "x86_64" else "int f(void) { return 0; }"
    compiler = shlex.split(os.environ.get("CC", "cc"))
    command = [*compiler, "-fopenmp", "-x", "c", "-c", "-o", os.devnull, "-"]
    try:
        return subprocess.run(command, input=probe, text=True, capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not can_compile(), reason="there is no GCC 12 or newer")
def test_the_library_is_compiled_wherever_it_can_be():
    assert library(), "make clean, and then make .venv/.installed-test"


@compiled
@pytest.mark.parametrize("kind", [nn.GroupNorm, ActivatedNorm])
@given(shape=shapes)
def test_float32_is_the_exact_result_within_a_few_roundings(
    kind: type[nn.GroupNorm], shape: tuple[int, int, int, int, int]
):
    x, norm = case(shape, torch.float32, kind)
    out = CompiledNorm(norm)(x)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out.double(), exact(x, norm), rtol=1e-5, atol=2e-5)


@compiled
@pytest.mark.parametrize("kind", [nn.GroupNorm, ActivatedNorm])
@given(shape=shapes)
def test_bf16_is_the_exact_result_rounded_once(
    kind: type[nn.GroupNorm], shape: tuple[int, int, int, int, int]
):
    x, norm = case(shape, torch.bfloat16, kind)
    out, expected = CompiledNorm(norm)(x).double(), exact(x, norm)
    assert ((out - expected).abs() <= 2**-8 * expected.abs() + 2e-5).all()


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
@given(shape=shapes, threads=st.integers(1, 3))
def test_an_image_has_the_same_bits_in_any_batch_by_any_number_of_threads(
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
def test_values_that_are_not_finite_stay_so_and_stay_in_their_image(
    dtype: torch.dtype, broken: float
):
    x, norm = case((3, 2, 8, 4, 4), dtype)
    ours = CompiledNorm(norm)
    before = ours(x)
    x[1, 0, 2, 3] = broken
    after = ours(x)
    assert torch.equal(after[::2], before[::2])
    assert after[1, :8].isnan().all()


@compiled
@pytest.mark.parametrize(
    ("activation", "smallest"), [("silu", 1e-30), ("mish", 1e-30), ("gelu", 1e-6), ("relu", 1e-30)]
)
@pytest.mark.parametrize("scale", [1.0, 20.0, 1e4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_activation_holds_for_the_smallest_and_the_largest(
    dtype: torch.dtype, scale: float, activation: Activation, smallest: float
):
    norm = ActivatedNorm(1, 1, 1e-5, activation).to(dtype)
    nn.init.constant_(norm.weight, scale)
    x = torch.linspace(-1, 1, 64).to(dtype).view(1, 1, 8, 8)
    torch.testing.assert_close(
        CompiledNorm(norm)(x).double(), exact(x, norm), rtol=2**-7, atol=smallest
    )


@compiled
@pytest.mark.parametrize("activation", ["silu", "mish", "gelu", "relu"])
@given(shape=shapes)
def test_a_modulation_is_each_images_own(
    activation: Activation, shape: tuple[int, int, int, int, int]
):
    x, norm = case(shape, torch.float32)
    assert isinstance(norm, ActivatedNorm)
    norm.activation = activation
    modulation = torch.randn(len(x), 2 * x.shape[1])
    ours = CompiledNorm(norm)
    together = ours(x, modulation)
    expected = exact(x, norm, modulation)
    torch.testing.assert_close(together.double(), expected, rtol=1e-5, atol=1e-4)
    alone = [ours(x[i : i + 1], modulation[i : i + 1]) for i in range(len(x))]
    assert torch.equal(together, torch.cat(alone))


@compiled
def test_a_tensor_laid_out_by_channels_is_laid_out_anew():
    x, norm = case((2, 8, 4, 5, 3), torch.float32)
    assert torch.equal(CompiledNorm(norm)(x.contiguous()), CompiledNorm(norm)(x))


def batch(size: int, count: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Make a step's tensors: columns, x and x_0_hat of five slots, and the network's output.

    There are `count` chains, of images of `size` values.
    """
    rng = np.random.default_rng(seed)
    columns = torch.from_numpy(rng.standard_normal((WIDTH, count)))
    for name, most in {"seed": 2**53, "index": 2**32, "draw": 2**32, "t": 1000}.items():
        columns[ADDRESS.index(name)] = torch.from_numpy(rng.integers(0, most, count))
    columns[0] = torch.from_numpy(rng.permutation(5)[:count])
    columns[BOUND] = 1
    x, x_0_hat = torch.from_numpy(rng.standard_normal((2, 5, 1, 1, size), np.float32))
    out = torch.from_numpy(rng.standard_normal((count, 1, 1, size), np.float32))
    return columns, x, x_0_hat, out


@compiled
@given(
    seed=st.integers(0, 2**32 - 1),
    remembers=st.booleans(),
    noisy=st.booleans(),
    size=st.integers(1, 600),
)
def test_a_step_is_pytorchs_to_a_rounding(seed: int, remembers: bool, noisy: bool, size: int):
    columns, x, x_0_hat, out = batch(size, seed=seed)
    out[0, ..., 0] = [math.nan, math.inf, -math.inf, 1e30][seed % 4]
    columns[len(ADDRESS) + COLUMNS.index("d")] *= remembers
    columns[len(ADDRESS) + COLUMNS.index("s")] *= noisy
    ours = [x.clone(), x_0_hat.clone()]
    theirs = [x.clone(), x_0_hat.clone()]
    kernels.advance(columns, *ours, out)
    step.advance(columns, *theirs, out)
    # the last bit of a logarithm may differ
    close = {"rtol": 3e-7, "atol": 1e-6, "equal_nan": True}
    for own, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, expected, **close)


@compiled
@pytest.mark.parametrize("size", [1, 3, 255, 257, 784])
def test_noise_is_that_of_its_address(size: int):
    columns, x, x_0_hat, out = batch(size, count=5)
    columns[len(ADDRESS) :] = 0
    columns[len(ADDRESS) + COLUMNS.index("s")] = 1
    kernels.advance(columns, x, x_0_hat, out)
    slots, _, *address = columns[: len(ADDRESS)].long()
    assert (x[slots] - normal(*address, (1, 1, size))).abs().max() <= 3e-7


@compiled
@given(size=st.integers(1, 600), seed=st.integers(0, 2**53 - 1), index=st.integers(0, 2**32 - 1))
def test_a_chain_starts_as_by_pytorch_whatever_was_in_its_slot(size: int, seed: int, index: int):
    chains = torch.tensor([[4, 0, 2], [seed, seed, 1], [index, 0, 3]])
    ours, theirs = (torch.full((2, 5, 1, 1, size), math.nan) for _ in range(2))
    kernels.start(chains, *ours)
    step.start(chains, *theirs)
    # the last bit of a logarithm may differ
    torch.testing.assert_close(ours[0], theirs[0], rtol=3e-7, atol=1e-6, equal_nan=True)
    assert torch.equal(ours[1].isnan(), theirs[1].isnan())
    assert not ours[1][[0, 2, 4]].any()


@compiled
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 600), threads=st.integers(1, 3))
def test_a_chain_steps_the_same_in_any_batch_by_any_number_of_threads(
    seed: int, size: int, threads: int
):
    columns, x, x_0_hat, out = batch(size, seed=seed)
    together = [x.clone(), x_0_hat.clone()]
    alone = [x.clone(), x_0_hat.clone()]
    torch.set_num_threads(threads)
    kernels.advance(columns, *together, out)
    torch.set_num_threads(1)
    for i in range(3):
        kernels.advance(columns[:, i : i + 1].contiguous(), *alone, out[i : i + 1])
    assert all(torch.equal(one, other) for one, other in zip(together, alone, strict=True))


@compiled
def test_chains_are_gathered_as_by_pytorch():
    columns, x, _, _ = batch(size=7)
    for own, expected in zip(kernels.gather(columns, x), step.gather(columns, x), strict=True):
        assert torch.equal(own, expected)


@compiled
def test_many_positions_far_from_zero_cost_no_digits():
    norm = nn.GroupNorm(2, 4, eps=1e-5)
    x = (torch.randn(1, 4, 256, 256) + 30).to(memory_format=torch.channels_last)
    torch.testing.assert_close(CompiledNorm(norm)(x).double(), exact(x, norm), rtol=1e-5, atol=2e-5)


@compiled
def test_a_library_of_another_source_is_refused(tmp_path: Path):
    changed = tmp_path / "kernels.c"
    changed.write_bytes(kernels.SOURCE.read_bytes() + b"\n")
    with pytest.raises(OSError, match=r"was compiled of another kernels\.c"):
        kernels.load(kernels.LIBRARY, changed)


def test_torchs_openmp_is_found_among_several_wherever_it_lies():
    packages = Path(torch.__file__).parents[1]
    line = "7f00-7f01 r-xp 00000000 fe:01 4242                       {}\n"
    other = "/usr/lib/my libraries/libgomp.so.1.0.0"
    own = f"{packages}/torch/lib/libgomp-a34b3233.so.1"
    maps = line.format(other) + line.format("/lib/libgompel.so") + line.format(own)
    assert kernels.openmp(maps) == own
    assert kernels.openmp(line.format(other)) == other
    with pytest.raises(OSError, match="no library of OpenMP"):
        kernels.openmp(line.format("/lib/libc.so.6"))


@compiled
def test_no_norm_of_a_served_network_is_left_to_pytorch():
    net = random_unet()
    pack(net)
    assert [module for module in net.modules() if isinstance(module, nn.GroupNorm)] == []


@compiled
def test_the_librarys_threads_are_torchs():
    library()
    maps = Path("/proc/self/maps").read_text()
    assert len(set(re.findall(r"/\S*/lib(?:gomp|iomp5|omp)\b\S*", maps))) == 1


def test_a_step_without_the_library_is_pytorchs_and_the_log_names_the_remedy(
    monkeypatch, tmp_path, caplog
):
    monkeypatch.setattr(kernels, "LIBRARY", tmp_path / "none.so")
    library.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            net = ServedNetwork(diffusers_format.load(SHIPPED / "fashion-mnist-28"), CPU, "fp32")
        assert step.fastest_on(CPU) == (step.start, step.gather, step.advance)
        assert net.kernels == kernels_on_a_cpu() == BY_PYTORCH
        assert "install this package again where GCC 12 or newer is" in caplog.text
        assert net(torch.zeros(1, 1, 28, 28), torch.tensor([5])).isfinite().all()
    finally:
        library.cache_clear()


@compiled
def test_the_name_of_the_kernels_tells_calibrations_apart():
    assert kernels_on_a_cpu() == COMPILED != BY_PYTORCH
