"""The U-Net's layers on a GPU, by the kernels of worker/backends/cuda/kernels.py: tensors are (B, C, H, W) in channels_last.

cuDNN and cuBLAS take another kernel for another batch size, and with it another last bit. Here an output is summed in the order
of its layer's weights, whatever tile it is in; only the tile depends on the batch. What comes before and after a convolution is
done in it: upsampling, time features, residuals, 1x1 shortcuts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor, nn
from torch.nn import functional as F

from worker.backends.cuda import kernels
from worker.backends.host import available_cores

_CHUNK = 128  # positions whose moments one program sums
_LARGEST = 2**31  # offsets are 32 bits wide
_only_compile: ContextVar[bool] = ContextVar("only_compile", default=False)


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program makes: `rows` positions of `columns` channels, summed `depth` products at a time."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    def within(self, depth: int, memory: int, of_one: int) -> Tile:
        """No deeper, and with as many stages as fit that many bytes of shared memory, of values of `of_one` bytes."""
        depth = min(depth, self.depth)
        return replace(
            self,
            depth=depth,
            stages=min(self.stages, memory // ((self.rows + self.columns) * depth * of_one)),
        )


# The first that keeps the whole GPU busy is taken; measured on an H200, where each is the fastest at some size. A sum in bf16 has
# the same bits for any depth; in float32, of three products in TF32 each, it has not, so there is one.
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
_BUSY = 0.9  # programs for each multiprocessor
_FEWEST_STAGES = 2


@dataclass(frozen=True, slots=True)
class Weights:
    """A convolution, or a linear layer, with a 1x1 convolution of what is to be added, laid out for the kernel.

    weight (side * side * C + C', N'), the shortcut last, with zeros from the layer's N = `count` channels on; bias float32 (N',).
    """

    weight: Tensor
    bias: Tensor
    count: int
    side: int

    @classmethod
    def of(cls, layer: nn.Conv2d | nn.Linear, shortcut: nn.Conv2d | None = None) -> Weights:
        layers = [layer] if shortcut is None else [layer, shortcut]
        weight = torch.cat([_laid_out(part.weight) for part in layers])
        bias = torch.stack([part.get_parameter("bias").detach().float() for part in layers]).sum(0)
        side = layer.weight.shape[-1] if isinstance(layer, nn.Conv2d) else 1
        return cls(weight, F.pad(bias, _beyond(len(bias))), len(bias), side)

    @classmethod
    def side_by_side(cls, layers: Sequence[nn.Linear]) -> Weights:
        """Of linear layers with one input, as one that has their outputs one after the other."""
        bias = torch.cat([layer.bias.detach().float() for layer in layers])
        return cls(
            _laid_out(torch.cat([layer.weight for layer in layers])),
            F.pad(bias, _beyond(len(bias))),
            len(bias),
            side=1,
        )

    @classmethod
    def of_patches(cls, layer: nn.Conv2d) -> Weights:
        """Of a 3x3 convolution as a product with `patches`."""
        laid_out = cls.of(layer)
        missing = _patch(layer.in_channels) - len(laid_out.weight)
        return cls(
            F.pad(laid_out.weight, (0, 0, 0, missing)), laid_out.bias, laid_out.count, side=1
        )


def _laid_out(weight: Tensor) -> Tensor:
    flat = (
        (weight.permute(2, 3, 1, 0) if weight.ndim == 4 else weight.t())
        .reshape(-1, len(weight))
        .detach()
    )
    return F.pad(flat, _beyond(len(weight))).contiguous()


def _beyond(count: int) -> tuple[int, int]:
    """Channels that fill up the last tile."""
    return 0, (
        max(16, triton.next_power_of_2(count)) if count <= 64 else triton.cdiv(count, 128) * 128
    ) - count


def _patch(channels: int) -> int:
    return max(16, 1 << (9 * channels - 1).bit_length())


def _tile(positions: int, weights: Weights, channels: Sequence[int], x: Tensor) -> Tile:
    """For so many positions of all images; `channels` of what is summed, each a multiple of the tile's depth."""
    busy, memory = _gpu(x.device)
    divisor = max(
        depth for depth in (16, 32, 64, 128) if not any(count % depth for count in channels)
    )
    fitted = [
        tile.within(divisor, memory, x.element_size())
        for tile in _TILES[x.dtype]
        if not len(weights.bias) % tile.columns
    ]
    fitting = [tile for tile in fitted if tile.stages >= _FEWEST_STAGES]
    if not fitting:
        raise ValueError(f"{memory} bytes of shared memory are too few for any tile")
    programs = (
        triton.cdiv(positions, tile.rows) * triton.cdiv(weights.count, tile.columns)
        for tile in fitting
    )
    return next(
        (tile for tile, count in zip(fitting, programs, strict=True) if count >= busy), fitting[-1]
    )


@cache
def _gpu(device: torch.device) -> tuple[float, int]:
    """Programs that keep it busy, and the shared memory of one. On a CPU, which interprets, any."""
    if device.type == "cpu":
        return 1, 2**20
    index = device.index if device.index is not None else torch.cuda.current_device()
    properties = triton.runtime.driver.active.utils.get_device_properties(index)
    return _BUSY * properties["multiprocessor_count"], properties["max_shared_mem"]


def compile_side_by_side(calls: Callable[[], None]) -> None:
    """The kernels that `calls` would launch are compiled, on all cores, and none of them runs."""

    def compile_all() -> None:
        _only_compile.set(True)
        with ThreadPoolExecutor(available_cores()) as executor, triton.AsyncCompileMode(executor):
            calls()

    copy_context().run(compile_all)  # a mode that an error ends would stay in this one


def _run(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    kernel.run(*arguments, grid=grid, warmup=_only_compile.get(), **options)


def _empty(
    like: Tensor, shape: tuple[int, int, int, int], dtype: torch.dtype, planes: bool = False
) -> Tensor:
    if math.prod(shape) >= _LARGEST:
        raise torch.OutOfMemoryError(
            f"{math.prod(shape)} values are too many for one kernel; take a smaller batch"
        )
    layout = torch.contiguous_format if planes else torch.channels_last
    return torch.empty(shape, device=like.device, dtype=dtype, memory_format=layout)


def _assert_laid_out(*tensors: Tensor) -> None:
    """The kernels count on it, and would make something else of any other layout."""
    assert all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in tensors)


def convolution(
    x: Tensor,
    weights: Weights,
    *,
    stride: int = 1,
    pad: int = 1,
    up: bool = False,
    features: Tensor | None = None,
    added: Tensor | None = None,
    sources: Sequence[Tensor] = (),
    planes: bool = False,
) -> Tensor:
    """x (B, C, H, W) -> (B, N, H', W') likewise, or contiguous float32 if `planes`. Channels are multiples of 16.

    `features` (B, N) and `added` (B, N, H', W') are added; so are the shortcut's products with `sources`, one tensor (B, C', H',
    W') or two side by side. `up`: x is first made twice as large, each position four times. 0 of `pad` means the asymmetric
    (0, 1, 0, 1). Raises torch.OutOfMemoryError for 2^31 values or more.
    """
    B, C, H, W = x.shape
    height, width = (side * (2 if up else 1) // stride for side in (H, W))
    out = _empty(x, (B, weights.count, height, width), torch.float32 if planes else x.dtype, planes)
    first, second = (sources[0], sources[-1]) if sources else (x, x)
    _assert_laid_out(x, first, second, x if added is None else added)
    M = B * height * width
    tile = _tile(M, weights, [C, *(source.shape[1] for source in sources)], x)
    _run(
        kernels.convolution,
        (triton.cdiv(M, tile.rows) * triton.cdiv(weights.count, tile.columns),),
        *(x, weights.weight, weights.bias),
        x if features is None else features,
        x if added is None else added,
        *(first, second, out, M, weights.count, len(weights.bias), H, W, height, width),
        0 if features is None else features.stride(0),
        **{
            "C": C,
            "C1": first.shape[1],
            "C2": second.shape[1],
            "SIDE": weights.side,
            "STRIDE": stride,
            "PAD": pad,
            "UP": int(up),
        },
        **{
            "FEATURES": features is not None,
            "ADDED": added is not None,
            "SOURCES": len(sources),
            "PLANES": planes,
        },
        **{
            "PRECISION": _PRECISION[x.dtype],
            "ROWS": tile.rows,
            "COLUMNS": tile.columns,
            "DEPTH": tile.depth,
        },
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out


def normalised(
    sources: Sequence[Tensor], groups: int, eps: float, weight: Tensor, bias: Tensor, silu: bool
) -> Tensor:
    """GroupNorm, then SiLU if `silu`, of one tensor (B, C, H, W) or of two side by side. weight and bias float32 (C,)."""
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
    _run(
        kernels.moments,
        (B, chunks),
        first,
        second,
        sums,
        H * W,
        **sizes,
        HELD=held,
        PART=part,
        ROWS=rows,
        CHUNK=chunk,
    )
    wide = triton.next_power_of_2(C)
    rows = max(1, 8192 // wide)
    grid = B, triton.cdiv(H * W, rows)
    _run(
        kernels.normalise,
        grid,
        first,
        second,
        sums,
        weight,
        bias,
        out,
        H * W,
        eps,
        **sizes,
        WIDE=wide,
        SILU=silu,
        ROWS=rows,
    )
    return out


def patches(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x float32 (B, C, H, W), contiguous -> (B, K, H, W): what a 3x3 convolution sees of it, filled up with zeros."""
    B, C, H, W = x.shape
    K = _patch(C)
    out = _empty(x, (B, K, H, W), dtype)
    M, rows = B * H * W, max(1, 2048 // K)
    _run(kernels.patches, (triton.cdiv(M, rows),), x, out, M, C, H, W, K=K, ROWS=rows)
    return out
