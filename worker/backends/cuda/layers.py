"""The U-Net's layers on a GPU, by the kernels of worker/backends/cuda/kernels.py.

cuDNN and cuBLAS may choose another kernel for another batch size, which changes the last bits. Here
an output is summed in the order of its layer's weights, whatever tile it is in, and only the tile
depends on the batch. A convolution also does what comes before and after it: upsampling, time
features, residuals and 1x1 shortcuts.

Tensors are (B, C, H, W) in channels_last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor, nn
from torch.nn import functional as F

from worker.backends.cuda import kernels
from worker.backends.host import available_cores

# positions whose moments one program sums
_CHUNK = 128
# offsets are 32 bits wide
_LARGEST = 2**31
_only_compile: ContextVar[bool] = ContextVar("only_compile", default=False)


@dataclass(frozen=True, slots=True)
class Tile:
    """The part of an output that one program computes.

    It has `rows` positions of `columns` channels, summed `depth` products at a time.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    def within(self, depth: int, memory: int, of_one: int) -> Tile:
        """Limit the depth, and the stages to what fits the shared memory.

        Args:
            depth: Upper bound on the depth.
            memory: Bytes of shared memory.
            of_one: Bytes of one value.
        """
        depth = min(depth, self.depth)
        fitting = memory // ((self.rows + self.columns) * depth * of_one)
        return replace(self, depth=depth, stages=min(self.stages, fitting))


# The first tile that keeps the whole GPU busy is used. On an H200, each was measured to be the
# fastest at some size. In bf16 a sum has the same bits for any depth. In float32 it does not, as
# each product is three in TF32, so all tiles have one depth.
_TILES = {
    torch.bfloat16: (
        Tile(128, 256, 64, 8, 3),
        Tile(128, 128, 64, 4, 3),
        Tile(64, 128, 64, 4, 4),
        Tile(64, 64, 128, 4, 3),
        Tile(64, 32, 128, 4, 4),
        Tile(64, 16, 128, 4, 5),
    ),
    torch.float32: (
        Tile(128, 64, 32, 4, 3),
        Tile(64, 64, 32, 4, 3),
        Tile(64, 32, 32, 4, 4),
        Tile(64, 16, 32, 4, 4),
    ),
}
_PRECISION = {torch.bfloat16: "ieee", torch.float32: "tf32x3"}
# programs for each multiprocessor that keep a GPU busy
_BUSY = 0.9
_FEWEST_STAGES = 2


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """The weights of a convolution or a linear layer, laid out for the kernel.

    They may include a 1x1 shortcut, whose products are added.

    Attributes:
        weight: (side * side * C + C', N'), the shortcut's C' rows last. The columns beyond the
            layer's N are zeros.
        bias: float32 (N',).
        count: N, the layer's channels.
        side: The side of the convolution's kernel.
    """

    weight: Tensor
    bias: Tensor
    count: int
    side: int

    @classmethod
    def from_layer(
        cls, layer: nn.Conv2d | nn.Linear, shortcut: nn.Conv2d | None = None
    ) -> LayerWeights:
        """Lay out a layer, with the 1x1 convolution of what is added to its output."""
        layers = [layer] if shortcut is None else [layer, shortcut]
        weight = torch.cat([_laid_out(part.weight) for part in layers])
        bias = torch.stack([part.get_parameter("bias").detach().float() for part in layers]).sum(0)
        side = layer.weight.shape[-1] if isinstance(layer, nn.Conv2d) else 1
        return cls(weight, F.pad(bias, _beyond(len(bias))), len(bias), side)

    @classmethod
    def side_by_side(cls, layers: Sequence[nn.Linear]) -> LayerWeights:
        """Join linear layers that share an input: their outputs follow one another."""
        weight = _laid_out(torch.cat([layer.weight for layer in layers]))
        bias = torch.cat([layer.bias.detach().float() for layer in layers])
        return cls(weight, F.pad(bias, _beyond(len(bias))), len(bias), side=1)

    @classmethod
    def from_patches(cls, layer: nn.Conv2d) -> LayerWeights:
        """Lay out a 3x3 convolution as a product with what `patches` returns."""
        laid_out = cls.from_layer(layer)
        missing = _patch(layer.in_channels) - len(laid_out.weight)
        weight = F.pad(laid_out.weight, (0, 0, 0, missing))
        return cls(weight, laid_out.bias, laid_out.count, side=1)


def _laid_out(weight: Tensor) -> Tensor:
    by_input = weight.permute(2, 3, 1, 0) if weight.ndim == 4 else weight.t()
    flat = by_input.reshape(-1, len(weight)).detach()
    return F.pad(flat, _beyond(len(weight))).contiguous()


def _beyond(count: int) -> tuple[int, int]:
    """Count the channels that fill up the last tile, as `F.pad` wants it."""
    if count <= 64:
        filled = max(16, triton.next_power_of_2(count))
    else:
        filled = triton.cdiv(count, 128) * 128
    return 0, filled - count


def _patch(channels: int) -> int:
    """Count the values of a 3x3 patch, filled up to a power of two."""
    return max(16, 1 << (9 * channels - 1).bit_length())


class Gpu(NamedTuple):
    """A GPU's size: programs that keep it busy, and bytes of shared memory for one program."""

    busy: float
    shared_memory: int


@cache
def gpu_of(device: torch.device) -> Gpu:
    """Look a device's size up. A CPU, which interprets the kernels, may be any."""
    if device.type == "cpu":
        return Gpu(1, 2**20)
    index = device.index if device.index is not None else torch.cuda.current_device()
    properties = triton.runtime.driver.active.utils.get_device_properties(index)
    return Gpu(_BUSY * properties["multiprocessor_count"], properties["max_shared_mem"])


def choose_tile(
    positions: int, weights: LayerWeights, channels: Sequence[int], x: Tensor, gpu: Gpu
) -> Tile:
    """Choose the first tile that keeps the GPU busy, or else the smallest.

    Args:
        positions: Positions of all images.
        weights: The layer.
        channels: Channels of each tensor that is summed. The tile's depth divides them all.
        x: A tensor of the layer's dtype.
        gpu: What it runs on.

    Raises:
        ValueError: No tile fits the shared memory.
    """
    common = math.gcd(*channels)
    divisor = max(depth for depth in (16, 32, 64, 128) if common % depth == 0)
    fitted = [
        tile.within(divisor, gpu.shared_memory, x.element_size())
        for tile in _TILES[x.dtype]
        if not len(weights.bias) % tile.columns
    ]
    fitting = [tile for tile in fitted if tile.stages >= _FEWEST_STAGES]
    if not fitting:
        raise ValueError(f"{gpu.shared_memory} bytes of shared memory are too few for any tile")
    for tile in fitting:
        programs = triton.cdiv(positions, tile.rows) * triton.cdiv(weights.count, tile.columns)
        if programs >= gpu.busy:
            return tile
    return fitting[-1]


def compile_side_by_side(calls: Callable[[], None]) -> None:
    """Compile the kernels that `calls` would launch, on all cores, without running any."""

    def compile_all() -> None:
        _only_compile.set(True)
        with ThreadPoolExecutor(available_cores()) as executor, triton.AsyncCompileMode(executor):
            calls()

    # If an error ended Triton's mode, the mode would stay in this thread's context.
    copy_context().run(compile_all)


def _run(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    kernel.run(*arguments, grid=grid, warmup=_only_compile.get(), **options)


def _empty(
    like: Tensor, shape: tuple[int, int, int, int], dtype: torch.dtype, planes: bool = False
) -> Tensor:
    if math.prod(shape) >= _LARGEST:
        count = math.prod(shape)
        raise torch.OutOfMemoryError(
            f"{count} values are too many for one kernel; take a smaller batch"
        )
    layout = torch.contiguous_format if planes else torch.channels_last
    return torch.empty(shape, device=like.device, dtype=dtype, memory_format=layout)


def _assert_laid_out(*tensors: Tensor) -> None:
    """Check the layout that the kernels rely on."""
    assert all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in tensors)


def convolution(
    x: Tensor,
    weights: LayerWeights,
    *,
    stride: int = 1,
    pad: int = 1,
    up: bool = False,
    features: Tensor | None = None,
    added: Tensor | None = None,
    sources: Sequence[Tensor] = (),
    planes: bool = False,
) -> Tensor:
    """Convolve x, and add what is given.

    Args:
        x: (B, C, H, W). Channels are multiples of 16, here and below.
        weights: The layer, of N channels.
        stride: 1, or 2 to halve the sides.
        pad: 1, or 0 for the asymmetric padding (0, 1, 0, 1).
        up: Make x twice as large first, each position four times.
        features: (B, N), added to every position.
        added: (B, N, H', W'), added.
        sources: One tensor (B, C', H', W'), or two side by side. Their products with the shortcut's
            weights are added.
        planes: Return contiguous float32.

    Returns:
        (B, N, H', W'), in the layout and dtype of x unless `planes`.

    Raises:
        torch.OutOfMemoryError: The result has 2^31 values or more.
        ValueError: The GPU's shared memory is too small for any tile.
    """
    B, C, H, W = x.shape
    height, width = (side * (2 if up else 1) // stride for side in (H, W))
    out = _empty(x, (B, weights.count, height, width), torch.float32 if planes else x.dtype, planes)
    first, second = (sources[0], sources[-1]) if sources else (x, x)
    _assert_laid_out(x, first, second, x if added is None else added)
    M = B * height * width
    channels = [C, *(source.shape[1] for source in sources)]
    tile = choose_tile(M, weights, channels, x, gpu_of(x.device))
    _run(
        kernels.convolution,
        (triton.cdiv(M, tile.rows) * triton.cdiv(weights.count, tile.columns),),
        *(x, weights.weight, weights.bias),
        x if features is None else features,
        x if added is None else added,
        *(first, second, out, M, weights.count, len(weights.bias), H, W, height, width),
        0 if features is None else features.stride(0),
        C=C,
        C1=first.shape[1],
        C2=second.shape[1],
        SIDE=weights.side,
        STRIDE=stride,
        PAD=pad,
        UP=int(up),
        FEATURES=features is not None,
        ADDED=added is not None,
        SOURCES=len(sources),
        PLANES=planes,
        PRECISION=_PRECISION[x.dtype],
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        DEPTH=tile.depth,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out


def normalised(
    sources: Sequence[Tensor], groups: int, eps: float, weight: Tensor, bias: Tensor, silu: bool
) -> Tensor:
    """Apply GroupNorm, then SiLU if asked for.

    Args:
        sources: One tensor (B, C, H, W), or two that make it up side by side.
        groups: The groups of the C channels.
        eps: What is added to a group's variance.
        weight: float32 (C,).
        bias: float32 (C,).
        silu: Apply SiLU.

    Returns:
        (B, C, H, W).

    Raises:
        torch.OutOfMemoryError: The result has 2^31 values or more.
    """
    first, second = sources[0], sources[-1]
    B, C1, H, W = first.shape
    C = sum(source.shape[1] for source in sources)
    chunk = min(_CHUNK, triton.next_power_of_2(H * W))
    chunks = triton.cdiv(H * W, chunk)
    sums = torch.empty(B, chunks, 2, groups, device=first.device)
    out = _empty(first, (B, C, H, W), first.dtype)
    _assert_laid_out(first, second)
    held, part = triton.next_power_of_2(groups), triton.next_power_of_2(C // groups)
    sizes: dict[str, Any] = {
        "C1": C1,
        "C": C,
        "GROUPS": groups,
        "chunks": chunks,
        "TWO": len(sources) > 1,
    }
    rows = min(chunk, max(1, 4096 // (held * part)))
    tile = {"HELD": held, "PART": part, "ROWS": rows, "CHUNK": chunk}
    _run(kernels.moments, (B, chunks), first, second, sums, H * W, **sizes, **tile)
    wide = triton.next_power_of_2(C)
    rows = max(1, 8192 // wide)
    grid = B, triton.cdiv(H * W, rows)
    tensors = (first, second, sums, weight, bias, out)
    options = {"WIDE": wide, "SILU": silu, "ROWS": rows}
    _run(kernels.normalise, grid, *tensors, H * W, eps, **sizes, **options)
    return out


def patches(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Collect what a 3x3 convolution sees of each position, filled up with zeros.

    x float32 (B, C, H, W), contiguous -> (B, K, H, W) of `dtype`.

    Raises:
        torch.OutOfMemoryError: The result has 2^31 values or more.
    """
    B, C, H, W = x.shape
    K = _patch(C)
    out = _empty(x, (B, K, H, W), dtype)
    M, rows = B * H * W, max(1, 2048 // K)
    _run(kernels.patches, (triton.cdiv(M, rows),), x, out, M, C, H, W, K=K, ROWS=rows)
    return out
