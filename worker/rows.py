"""What is done to chains once the network has spoken: each takes its plan's row, with its own noise."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.noise import normal
from models.plans import COLUMNS

log = logging.getLogger(__name__)
Array = TypeVar("Array", Tensor, NDArray[np.float32])
Advance = Callable[[Tensor, Tensor, Tensor, Tensor], None]
ADDRESS = ("slot", "t", "seed", "index", "draw")
WIDTH = len(ADDRESS) + len(COLUMNS)


def next_state(row: Sequence[Array], x: Array, out: Array, before: Array | None, noise: Array | None) -> tuple[Array, Array]:
    """x' = a x_0_hat + b x + d x_0_hat_previous + s z, with x_0_hat = clip(p x + q out, -bound, bound); and x_0_hat.

    The numbers of the row are (B, 1, 1, 1) each. `before`: x_0_hat of the row before.
    """
    p, q, bound, a, b, d, s = row
    # clipped, an infinity would pass for black or white; out - out is 0 or, then, NaN, which stays until the engine sees it
    x_0_hat = (p * x + q * out).clip(-bound, bound) + (out - out)
    after = a * x_0_hat + b * x
    if before is not None:
        after += d * before
    if noise is not None:
        after += s * noise
    return after, x_0_hat


def advance(columns: Tensor, x: Tensor, x_0_hat: Tensor, out: Tensor) -> None:
    """The chains of a batch, in place in the pool, by one operation after another.

    columns float64 (12, B) as in `worker.pool.Batch`; x and x_0_hat float32 (slots, C, H, W); out float32 (B, C, H, W).
    """
    slots, _, seed, index, draw = columns[: len(ADDRESS)].long()
    row = columns[len(ADDRESS) :, :, None, None, None].float()
    _, C, H, W = out.shape
    noise = normal(seed, index, draw, (C, H, W))
    x[slots], x_0_hat[slots] = next_state(tuple(row), x[slots], out, x_0_hat[slots], noise)


def advance_on(device: torch.device) -> Advance:
    """On CUDA one kernel, where Triton can make it."""
    if device.type != "cuda":
        return advance
    try:
        from worker import fused

        nothing = torch.zeros(1, 1, 1, 1, device=device)
        fused.advance(torch.zeros(WIDTH, 1, dtype=torch.float64, device=device), nothing, nothing.clone(), nothing.clone())
    except Exception as error:  # no Triton, no C compiler for it, a GPU that it does not know
        log.warning("rows and noise take a hundred operations a step instead of one, for Triton makes no kernel: %s", error)
        return advance
    return fused.advance
