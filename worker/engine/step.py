"""Work of a step around the network: gathering chains, then applying their plan rows and noise.

And what comes before a chain's first step: its x_T.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from models.diffusion.clipping import standard_deviation, thresholded
from models.diffusion.noise import normal
from models.diffusion.plans import COLUMNS
from models.diffusion.sampling import split
from worker.backends.cpu import kernels
from worker.backends.cpu.kernels import library
from worker.logs import event

log = logging.getLogger(__name__)
Start = Callable[[Tensor, Tensor, Tensor], None]
Gather = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Advance = Callable[[Tensor, Tensor, Tensor, Tensor], None]
# values of new chains' noise: drawing one by PyTorch takes some 40 bytes
DRAWN_AT_ONCE = 1 << 20
ADDRESS = ("slot", "t", "seed", "index", "draw")
WIDTH = len(ADDRESS) + len(COLUMNS)
# What follows in the columns of a conditional network: a row of its embedding of classes, and w.
OF_CLASSES = ("class_row", "guidance")


def start(chains: Tensor, x: Tensor, x_0_hat: Tensor, drawn_at_once: int = DRAWN_AT_ONCE) -> None:
    """Put x_T of new chains into the pool. It is draw 0 of their noise.

    Args:
        chains: int64 (3, B): slots, seeds and indices.
        x: As for `advance`.
        x_0_hat: As for `advance`.
        drawn_at_once: How many values are drawn at once, about.
    """
    C, H, W = x.shape[1:]
    for where, seed, index in chains.split(max(1, drawn_at_once // (C * H * W)), dim=1):
        x[where] = normal(seed, index, torch.zeros_like(index), (C, H, W))
        x_0_hat[where] = 0


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


def advance(
    columns: Tensor, x: Tensor, x_0_hat: Tensor, out: Tensor, dynamic: bool = False
) -> None:
    """Take the row of each chain of a batch, in place in the pool, one operation after another.

    It is `models.diffusion.sampling.chain`, with a row for each chain. No operation depends on
    what the columns hold, so that a CUDA graph can record them.

    Args:
        columns: float64 (WIDTH or more, B), as `worker.engine.pool.columns_of` makes it.
        x: float32 (slots, C, H, W).
        x_0_hat: float32 (slots, C, H, W).
        out: The network's output, float32 (B, C or 2C, H, W).
        dynamic: Whether any chain may be thresholded. Otherwise `ratio` is not looked at.
    """
    slots, _, seed, index, draw = columns[: len(ADDRESS)].long()
    row = columns[len(ADDRESS) : WIDTH, :, None, None, None].float()
    p, q, bound, a, b, d, s, ratio, most, spread, own = row
    C, H, W = x.shape[1:]
    out, v = split(out, C)
    own_x = x[slots]
    guess = p * own_x + q * out
    own_x_0_hat = guess.clip(-bound, bound)
    if dynamic:
        own_x_0_hat = torch.where(ratio > 0, thresholded(guess, ratio, most), own_x_0_hat)
    # Clipping would turn an infinity into black or white. out - out is NaN then, otherwise 0: the
    # NaN stays until the engine sees it.
    own_x_0_hat = own_x_0_hat + (out - out)
    after = a * own_x_0_hat + b * own_x
    after += d * x_0_hat[slots]
    after += standard_deviation(s, spread, own, v) * normal(seed, index, draw, (C, H, W))
    x[slots] = after
    x_0_hat[slots] = own_x_0_hat


def guided(columns: Tensor, out: Tensor, null_out: Tensor) -> Tensor:
    """Guide estimates away from those without a class (Ho and Salimans 2022).

    The estimate becomes null + w (conditional - null), whatever it is of: eps, x_0 and v are the
    same up to what x_t adds. A learned variance stays that of the class. w = 1 changes no bit.

    Args:
        columns: As for `advance`, and OF_CLASSES after them.
        out: The network's output with each chain's class, float32 (B, C or 2C, H, W).
        null_out: The estimates without a class in each slot, float32 (slots, C, H, W).

    Returns:
        float32, of the shape of `out`.
    """
    null = null_out[columns[0].long()]
    w = columns[-1, :, None, None, None].float()
    estimate, v = split(out, null.shape[1])
    estimate = torch.where(w == 1, estimate, null + w * (estimate - null))
    return torch.cat([estimate, v], dim=1)


def fastest_on(
    device: torch.device, *, dynamic: bool = False, learned: bool = False
) -> tuple[Start, Gather, Advance]:
    """Choose the fastest `start`, `gather` and `advance` that work on the device.

    On a CPU they are the compiled functions, if there are any. On CUDA a single kernel advances, if
    Triton can make it; otherwise the log says why not. None of them knows the last four columns of
    a row, which PyTorch's operations compute on all devices.

    Args:
        device: Where the pool is.
        dynamic: Whether any chain may be thresholded.
        learned: Whether the network returns a variance beside its estimate.
    """
    by_pytorch = partial(advance, dynamic=dynamic) if dynamic or learned else advance
    if device.type == "cpu" and library() is not None:
        takes_rows = by_pytorch if dynamic or learned else kernels.advance
        return kernels.start, kernels.gather, takes_rows
    if device.type != "cuda" or dynamic or learned:
        return start, gather, by_pytorch
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
            extra=event("kernels.missing"),
        )
        return start, gather, advance
    return start, gather, step_kernel.advance
