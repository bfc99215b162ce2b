"""Which arithmetic trains fastest on this machine, by measurement."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

PRECISIONS = ("fp32", "bf16")


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """bfloat16 arithmetic over float32 master weights, or nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def faster_precision(step: Callable[[str], None], device: torch.device) -> str:
    """Time `step(precision)` three times each after a warm-up and name the faster; a step must change nothing that is kept."""
    return min(PRECISIONS, key=lambda precision: _seconds(step, precision, device))


def _seconds(step: Callable[[str], None], precision: str, device: torch.device) -> float:
    step(precision)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        step(precision)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best
