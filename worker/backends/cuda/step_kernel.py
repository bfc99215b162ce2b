"""The part of a step that follows the network, rows and noise, as one Triton kernel for CUDA."""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

# values of an image that one program computes
_VALUES = 256
_TO_UNIT = tl.constexpr(2.0**-32)
_TO_ANGLE = tl.constexpr(2 * math.pi * 2.0**-32)


def advance(columns: Tensor, x: Tensor, x_0_hat: Tensor, out: Tensor) -> None:
    """Do in place what `worker.engine.step.advance` does in a hundred operations.

    Args:
        columns: float64 (WIDTH, B), as `worker.engine.pool.columns_of` makes it.
        x: float32 (slots, C, H, W).
        x_0_hat: float32 (slots, C, H, W).
        out: The network's output, float32 (B, C, H, W).
    """
    out = out.contiguous()
    chains, size = len(out), math.prod(out.shape[1:])
    # Without fusion each product is rounded before it is added to, so the bits are those of one
    # operation after another.
    advance_kernel[chains, triton.cdiv(size, _VALUES)](
        columns, x, x_0_hat, out, chains, size, VALUES=_VALUES, enable_fp_fusion=False
    )


@triton.jit
def advance_kernel(columns, x, x_0_hat, out, chains, size, VALUES: tl.constexpr):
    """Advance VALUES values of one chain."""
    chain = tl.program_id(0)
    value = tl.program_id(1) * VALUES + tl.arange(0, VALUES)
    column, inside = columns + chain, value < size
    here = tl.load(column).to(tl.int64) * size + value
    p, q, bound = _row(column + 5 * chains), _row(column + 6 * chains), _row(column + 7 * chains)
    a, b = _row(column + 8 * chains), _row(column + 9 * chains)
    d, s = _row(column + 10 * chains), _row(column + 11 * chains)
    seed = tl.load(column + 2 * chains).to(tl.int64)
    index = tl.load(column + 3 * chains).to(tl.int64)
    draw = tl.load(column + 4 * chains).to(tl.int64)
    x_now = tl.load(x + here, inside)
    before = tl.load(x_0_hat + here, inside)
    own_out = tl.load(out + chain.to(tl.int64) * size + value, inside)
    # as in worker/engine/step.py: own_out - own_out keeps what is not finite
    after = tl.clamp(p * x_now + q * own_out, -bound, bound) + (own_out - own_out)
    z = _normal(seed, index, draw, value, (size + 3) // 4)
    tl.store(x_0_hat + here, after, inside)
    tl.store(x + here, a * after + b * x_now + d * before + s * z, inside)


@triton.jit
def _row(number):
    return tl.load(number).to(tl.float32)


@triton.jit
def _normal(seed, index, draw, value, quarter):
    """Draw what `models.diffusion.noise.normal` draws.

    A lane's four values lie a quarter of the image apart.
    """
    lane, part = value % quarter, value // quarter
    zero = tl.zeros_like(lane).to(tl.uint32)
    lane, draw, index = lane.to(tl.uint32), draw.to(tl.uint32), index.to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, lane, draw, index, zero)
    even = tl.where(part < 2, w0, w2).to(tl.float64)
    odd = tl.where(part < 2, w1, w3).to(tl.float64)
    radius = tl.sqrt(tl.log((even + 0.5) * _TO_UNIT) * -2)
    angle = (odd + 0.5) * _TO_ANGLE
    return (radius * tl.where(part % 2 == 0, tl.cos(angle), tl.sin(angle))).to(tl.float32)
