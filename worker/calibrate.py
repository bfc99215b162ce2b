"""Which batch sizes may be used: those whose results agree to the bit. A network's kernels may change with the batch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.noise import normal
from worker.pool import Network

SIZES = (2, 4, 8, 16, 32)  # a lone chain is padded to 2: size 1 takes other kernels


@dataclass(frozen=True, slots=True)
class Calibration:
    """Seconds a step of each bucket that may be used."""

    seconds: dict[int, float]

    @property
    def buckets(self) -> tuple[int, ...]:
        return tuple(sorted(self.seconds))

    @property
    def image_steps_per_s(self) -> float:
        """Of the fastest bucket."""
        return max(size / seconds for size, seconds in self.seconds.items())


@torch.inference_mode()
def calibrate(
    network: Network, shape: tuple[int, int, int], T: int, device: torch.device, sizes: Sequence[int] = SIZES
) -> Calibration:
    """Run every size over the same chains and keep those that give the bits of the smallest."""
    index = torch.arange(max(sizes), device=device)
    x = normal(torch.zeros_like(index), index, torch.zeros_like(index), shape)
    t = index * (T - 1) // max(1, len(index) - 1)
    runs = {size: _run(network, x, t, size) for size in sorted(sizes)}
    reference = runs[min(sizes)][0]
    return Calibration({size: seconds for size, (out, seconds) in runs.items() if torch.equal(out, reference)})


def _run(network: Network, x: Tensor, t: Tensor, size: int) -> tuple[Tensor, float]:
    """All chains in batches of `size`, and the seconds of the fastest batch."""
    network(x[:size], t[:size])
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
    outs, best = [], float("inf")
    for first in range(0, len(x), size):
        start = time.perf_counter()
        out = network(x[first : first + size], t[first : first + size])
        if x.device.type == "cuda":
            torch.cuda.synchronize(x.device)
        best = min(best, time.perf_counter() - start)
        outs.append(out)
    return torch.cat(outs), best
