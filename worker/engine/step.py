"""Work of a step around the network: gathering chains, then applying their plan rows and noise."""

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
    """Take a batch's chains from the pool.

    Args:
        columns: As for `advance`.
        x: As for `advance`.

    Returns:
        x, float32 (B, C, H, W), and t, int64 (B,).
    """
    slots, t = columns[:2].long()
    return x[slots], t


def advance(columns: Tensor, x: Tensor, x_0_hat: Tensor, out: Tensor) -> None:
    """Take the row of each chain of a batch, in place in the pool, one operation after another.

        x_0_hat = clip(p x + q out, -bound, bound)
        x' = a x_0_hat + b x + d x_0_hat_previous + s z

    Args:
        columns: float64 (12, B), as `worker.engine.pool.columns_of` makes it.
        x: float32 (slots, C, H, W).
        x_0_hat: float32 (slots, C, H, W).
        out: The network's output, float32 (B, C, H, W).
    """
    slots, _, seed, index, draw = columns[: len(ADDRESS)].long()
    p, q, bound, a, b, d, s = columns[len(ADDRESS) :, :, None, None, None].float()
    _, C, H, W = out.shape
    own_x = x[slots]
    # Clipping would turn an infinity into black or white. out - out is NaN then, otherwise 0: the
    # NaN stays until the engine sees it.
    own_x_0_hat = (p * own_x + q * out).clip(-bound, bound) + (out - out)
    after = a * own_x_0_hat + b * own_x
    after += d * x_0_hat[slots]
    after += s * normal(seed, index, draw, (C, H, W))
    x[slots] = after
    x_0_hat[slots] = own_x_0_hat


def fastest_on(device: torch.device) -> tuple[Gather, Advance]:
    """Choose the fastest `gather` and `advance` that work on the device.

    On a CPU they are the compiled functions, if there are any. On CUDA a single kernel advances, if
    Triton can make it; otherwise the log says why not.
    """
    if device.type == "cpu" and library():
        return kernels.gather, kernels.advance
    if device.type != "cuda":
        return gather, advance
    try:
        from worker.backends.cuda import step_kernel

        columns = torch.zeros(WIDTH, 1, dtype=torch.float64, device=device)
        x, x_0_hat, out = (torch.zeros(1, 1, 1, 1, device=device) for _ in range(3))
        step_kernel.advance(columns, x, x_0_hat, out)
    # no Triton, no C compiler for it, or a GPU that it does not know
    except Exception as error:
        log.warning(
            "rows and noise take a hundred operations a step instead of one,"
            " for Triton makes no kernel: %s",
            error,
        )
        return gather, advance
    return gather, step_kernel.advance
