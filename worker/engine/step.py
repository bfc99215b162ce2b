"""What a step does around the network: chains come out of the pool, and go back with their plan's row taken, and their noise."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from models.diffusion.noise import normal
from models.diffusion.plans import COLUMNS
from worker.backends.cpu import kernels
from worker.backends.cpu.kernels import library

log = logging.getLogger(__name__)
Gather = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Advance = Callable[[Tensor, Tensor, Tensor, Tensor], None]
ADDRESS = ("slot", "t", "seed", "index", "draw")
WIDTH = len(ADDRESS) + len(COLUMNS)


def gather(columns: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Of a batch's chains x float32 (B, C, H, W) and t int64 (B,). columns and x: as for `advance`."""
    slots, t = columns[:2].long()
    return x[slots], t


def advance(columns: Tensor, x: Tensor, x_0_hat: Tensor, out: Tensor) -> None:
    """The chains of a batch, in place in the pool, by one operation after another.

    x' = a x_0_hat + b x + d x_0_hat_previous + s z, with x_0_hat = clip(p x + q out, -bound, bound).

    columns float64 (12, B) of `engine.pool.columns_of`; x and x_0_hat float32 (slots, C, H, W); out float32 (B, C, H, W).
    """
    slots, _, seed, index, draw = columns[: len(ADDRESS)].long()
    p, q, bound, a, b, d, s = columns[len(ADDRESS) :, :, None, None, None].float()
    _, C, H, W = out.shape
    own_x = x[slots]
    # clipped, an infinity would pass for black or white; out - out is 0 or, then, NaN, which stays until the engine sees it
    own_x_0_hat = (p * own_x + q * out).clip(-bound, bound) + (out - out)
    after = a * own_x_0_hat + b * own_x
    after += d * x_0_hat[slots]
    after += s * normal(seed, index, draw, (C, H, W))
    x[slots], x_0_hat[slots] = after, own_x_0_hat


def fastest_on(device: torch.device) -> tuple[Gather, Advance]:
    """On a CPU functions of ours, where they were compiled; on CUDA one kernel advances, where Triton can make it."""
    if device.type == "cpu" and library():
        return kernels.gather, kernels.advance
    if device.type != "cuda":
        return gather, advance
    try:
        from worker.backends.cuda import step_kernel

        nothing = torch.zeros(1, 1, 1, 1, device=device)
        step_kernel.advance(
            torch.zeros(WIDTH, 1, dtype=torch.float64, device=device),
            nothing,
            nothing.clone(),
            nothing.clone(),
        )
    except Exception as error:  # no Triton, no C compiler for it, a GPU that it does not know
        log.warning(
            "rows and noise take a hundred operations a step instead of one, for Triton makes no kernel: %s",
            error,
        )
        return gather, advance
    return gather, step_kernel.advance
