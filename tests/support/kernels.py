"""What tests ask of the GPU's kernels in a process of its own: Triton reads at its import whether it is to interpret."""

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
FEW, MANY = 1, 1e9  # multiprocessors: the widest tile keeps a few busy, and none keeps many


def apart(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, in units of theirs' standard deviation."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.std())


def gpu(multiprocessors: float, memory: int = 232448) -> Any:
    """As if there were one, for the choice of tiles: an H200's shared memory."""
    return patch("worker.backends.cuda.layers._gpu", lambda device: (multiprocessors, memory))


@torch.inference_mode()
def convolution(stride: int, pad: int, up: bool, extras: bool, multiprocessors: float) -> float:
    """48 channels of 32, 3x3, of three images; with all that may be added, if `extras`."""
    from worker.backends.cuda import layers

    torch.manual_seed(0)
    conv, shortcut = nn.Conv2d(32, 48, 3, stride, pad), nn.Conv2d(48, 48, 1)
    x = torch.randn(3, 32, 4, 6).to(memory_format=NHWC)
    seen = F.interpolate(x, scale_factor=2.0) if up else x
    expected = conv(F.pad(seen, (0, 1, 0, 1)) if pad == 0 else seen)
    if not extras:
        with gpu(multiprocessors):
            planes = layers.convolution(
                x, layers.Weights.of(conv), stride=stride, pad=pad, up=up, planes=True
            )
        assert planes.is_contiguous()
        return apart(planes, expected)
    sources = [
        torch.randn(3, channels, *expected.shape[2:]).to(memory_format=NHWC)
        for channels in (32, 16)
    ]
    features, added = torch.randn(3, 50)[:, 2:], torch.randn_like(expected).to(memory_format=NHWC)
    weights = layers.Weights.of(conv, shortcut)
    added_to = {"features": features, "added": added, "sources": sources}
    with gpu(multiprocessors):
        ours = layers.convolution(x, weights, stride=stride, pad=pad, up=up, **added_to)
    return apart(
        ours, expected + features[:, :, None, None] + added + shortcut(torch.cat(sources, 1))
    )


@torch.inference_mode()
def normalised(channels: tuple[int, ...], groups: int, silu: bool) -> float:
    """Of images of 9x15 positions, more than one program sums."""
    from worker.backends.cuda import layers

    torch.manual_seed(0)
    sources = [(3 * torch.randn(2, count, 9, 15) + 1).to(memory_format=NHWC) for count in channels]
    norm = nn.GroupNorm(groups, sum(channels), eps=1e-6)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    expected = norm(torch.cat(sources, 1))
    ours = layers.normalised(sources, groups, norm.eps, norm.weight, norm.bias, silu)
    return apart(ours, F.silu(expected) if silu else expected)


@torch.inference_mode()
def network(cfg: UNetConfig) -> list[float]:
    """Differences from the network as it is: of two images in one batch, and of the first alone, in other tiles."""
    from worker.backends.cuda.unet import GpuUNet

    net = random_unet(cfg=cfg)
    x, features = (
        torch.randn(2, cfg.in_channels, cfg.sample_size, cfg.sample_size),
        net.time_features(torch.tensor([3, 999])),
    )
    expected, denoise = net.denoise(x, features), GpuUNet(net)
    with gpu(FEW):
        together = denoise(x, features)
    with gpu(MANY):
        alone = denoise(x[:1], features[:1])
    return [apart(together, expected), apart(alone, expected[:1])]


def tile(
    layer: nn.Conv2d, sources: list[int], positions: int, memory: int
) -> tuple[int, int, int, int, int]:
    """Rows, columns, depth, warps and stages of a layer's tile for a GPU of 132 multiprocessors."""
    from worker.backends.cuda.layers import Weights, _tile

    x = torch.empty(1, layer.in_channels, 1, 1, dtype=torch.bfloat16)
    with gpu(0.9 * 132, memory):
        return astuple(_tile(positions, Weights.of(layer), [layer.in_channels, *sources], x))


def intermediate_code(
    kernel: str, types: dict[str, str], constants: dict[str, Any], **options: int
) -> list[str]:
    """Lines of what Triton makes of a kernel, whatever the GPU. `types` of arguments; integers are i32."""
    return str(_compiled(kernel, types, constants, 90, options).asm["ttir"]).splitlines()


def machine_code(
    kernel: str, types: dict[str, str], constants: dict[str, Any], capability: int, **options: int
) -> list[str]:
    """Lines of what a kernel becomes on GPUs of that compute capability times ten."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(_compiled(kernel, types, constants, capability, options).asm["cubin"])
        file.flush()
        listing = subprocess.run(
            [tool, "--dump-sass", file.name], capture_output=True, text=True, check=True
        ).stdout
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
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, kind in enumerate(signature.values())
        if kind[0] in "*i"
    }
    source = ASTSource(function, signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
