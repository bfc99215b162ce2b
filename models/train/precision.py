"""The arithmetic that trains fastest on this machine, found by measurement."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import torch

PRECISIONS = ("fp32", "bf16")


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Make the context of a training step: bfloat16 over float32 master weights, or nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def faster_precision(
    step: Callable[[str], None], device: torch.device, clock: Callable[[], float] = perf_counter
) -> str:
    """Name the precision that steps fastest.

    Args:
        step: Takes a training step in a precision. It must change nothing that is kept.
        device: Where it computes.
        clock: Tells the time, in seconds.
    """
    return min(PRECISIONS, key=lambda precision: _seconds(step, precision, device, clock))


def _seconds(
    step: Callable[[str], None], precision: str, device: torch.device, clock: Callable[[], float]
) -> float:
    """Take the best of three times, after a warm-up."""
    step(precision)
    best = float("inf")
    for _ in range(3):
        start = clock()
        step(precision)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, clock() - start)
    return best
