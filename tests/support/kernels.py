"""Questions that tests ask of the GPU's kernels, in another process.

Triton decides at its import whether it interprets kernels or compiles them.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import astuple
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.unet_config import UNetConfig
from tests.support.networks import random_unet

NHWC = torch.channels_last
# programs that keep a GPU busy: the widest tile makes the few, and no tile makes the many
FEW = 1
MANY = 1e9


def apart(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference, in units of theirs' standard deviation."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.std())


def gpu(busy: float, memory: int = 232448) -> Any:
    """Choose tiles as for a GPU that so many programs keep busy, with an H200's shared memory."""
    from worker.backends.cuda.layers import Gpu

    return patch("worker.backends.cuda.layers.gpu_of", lambda device: Gpu(busy, memory))


@torch.inference_mode()
def convolution(stride: int, pad: int, up: bool, extras: bool, busy: float) -> float:
    """Convolve three images of 32 channels to 48; `extras` adds everything that can be added."""
    from worker.backends.cuda import layers

    torch.manual_seed(0)
    conv = nn.Conv2d(32, 48, 3, stride, pad)
    shortcut = nn.Conv2d(48, 48, 1)
    options = {"stride": stride, "pad": pad, "up": up}
    x = torch.randn(3, 32, 4, 6).to(memory_format=NHWC)
    seen = F.interpolate(x, scale_factor=2.0) if up else x
    expected = conv(F.pad(seen, (0, 1, 0, 1)) if pad == 0 else seen)
    if not extras:
        weights = layers.LayerWeights.from_layer(conv)
        with gpu(busy):
            planes = layers.convolution(x, weights, planes=True, **options)
        assert planes.is_contiguous()
        return apart(planes, expected)
    height, width = expected.shape[2:]
    sources = [torch.randn(3, C, height, width).to(memory_format=NHWC) for C in (32, 16)]
    features = torch.randn(3, 50)[:, 2:]
    added = torch.randn_like(expected).to(memory_format=NHWC)
    weights = layers.LayerWeights.from_layer(conv, shortcut)
    extra = {"features": features, "added": added, "sources": sources}
    with gpu(busy):
        ours = layers.convolution(x, weights, **options, **extra)
    expected = expected + features[:, :, None, None] + added + shortcut(torch.cat(sources, 1))
    return apart(ours, expected)


@torch.inference_mode()
def normalised(channels: tuple[int, ...], groups: int, silu: bool) -> float:
    """Normalise images of 9x15 positions, which more than one program sums."""
    from worker.backends.cuda import layers

    torch.manual_seed(0)
    sources = [(3 * torch.randn(2, count, 9, 15) + 1).to(memory_format=NHWC) for count in channels]
    norm = nn.GroupNorm(groups, sum(channels), eps=1e-6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    expected = norm(torch.cat(sources, 1))
    ours = layers.normalised(sources, groups, norm.eps, norm.weight, norm.bias, silu)
    return apart(ours, F.silu(expected) if silu else expected)


@torch.inference_mode()
def network(cfg: UNetConfig) -> list[float]:
    """Compare with the network itself: two images in a batch, and one alone in other tiles."""
    from worker.backends.cuda.unet import GpuUNet

    net = random_unet(cfg=cfg)
    x = torch.randn(2, *cfg.shape)
    features = net.time_features(torch.tensor([3, 999]))
    expected = net.denoise(x, features)
    denoise = GpuUNet(net)
    with gpu(FEW):
        together = denoise(x, features)
    with gpu(MANY):
        alone = denoise(x[:1], features[:1])
    return [apart(together, expected), apart(alone, expected[:1])]


def tile(
    layer: nn.Conv2d, sources: list[int], positions: int, memory: int
) -> tuple[int, int, int, int, int]:
    """Choose a layer's tile on 132 multiprocessors: rows, columns, depth, warps, stages."""
    from worker.backends.cuda.layers import Gpu, LayerWeights, choose_tile

    x = torch.empty(1, layer.in_channels, 1, 1, dtype=torch.bfloat16)
    weights = LayerWeights.from_layer(layer)
    channels = [layer.in_channels, *sources]
    return astuple(choose_tile(positions, weights, channels, x, Gpu(0.9 * 132, memory)))


def intermediate_code(
    kernel: str, types: dict[str, str], constants: dict[str, Any], **options: int
) -> list[str]:
    """List the lines of Triton's code for a kernel, which is the same for every GPU.

    `types` are of the arguments. Those that it lacks are i32.
    """
    return str(_compiled(kernel, types, constants, 90, options).asm["ttir"]).splitlines()


def machine_code(
    kernel: str, types: dict[str, str], constants: dict[str, Any], capability: int, **options: int
) -> list[str]:
    """List a kernel's machine code on GPUs of ten times this compute capability."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(_compiled(kernel, types, constants, capability, options).asm["cubin"])
        file.flush()
        command = [tool, "--dump-sass", file.name]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(.*?) ;", listing, re.MULTILINE)


def _compiled(
    kernel: str,
    types: dict[str, str],
    constants: dict[str, Any],
    capability: int,
    options: dict[str, int],
) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from worker.backends.cuda import kernels

    function = getattr(kernels, kernel)
    signature = {
        name: "constexpr" if name in constants else types.get(name, "i32")
        for name in function.arg_names
    }
    kinds = enumerate(signature.values())
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in kinds if kind[0] in "*i"}
    source = ASTSource(function, signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
