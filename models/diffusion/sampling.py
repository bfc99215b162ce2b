"""Algorithm 2 as it reads: one loop. Obviously right rather than fast; the engine is tested against it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from models.diffusion.noise import normal
from models.diffusion.plans import Plan

Network = Callable[[Tensor, Tensor], Tensor]


def chain(
    net: Network,
    plan: Plan,
    seed: int,
    indices: Sequence[int],
    shape: tuple[int, int, int],
    device: torch.device | str = "cpu",
    start: Tensor | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images `indices` of `seed`, step by step: yields (x, x_0_hat) after each row, float32 of (B, C, H, W).

    `net` maps x (B, C, H, W) and t int64 (B,) to the output that the plan was compiled for. `start`: x at the plan's first
    timestep, (B, C, H, W); None: noise.
    """
    index = torch.tensor(indices, device=device)

    def z(draw: int) -> Tensor:
        return normal(torch.full_like(index, seed), index, torch.full_like(index, draw), shape)

    x = z(0) if start is None else start
    previous = torch.zeros_like(x)
    for k, (t, (p, q, bound, a, b, d, s)) in enumerate(
        zip(plan.t.to(device), plan.rows.to(device), strict=True)
    ):
        x_0_hat = (p * x + q * net(x, t.expand(len(x)))).clamp(-bound, bound)
        x = a * x_0_hat + b * x + d * previous + s * z(k + 1)
        previous = x_0_hat
        yield x, x_0_hat


@torch.inference_mode()
def sample(
    net: Network,
    plan: Plan,
    seed: int,
    indices: Sequence[int],
    shape: tuple[int, int, int],
    device: torch.device | str = "cpu",
) -> Tensor:
    """The finished images, float32 of (B, C, H, W)."""
    for x, _ in chain(net, plan, seed, indices, shape, device):
        finished = x
    return finished


def from_bytes(pixels: Tensor) -> Tensor:
    """0..255 to [-1, 1], float32; `to_bytes` takes it back."""
    return pixels.float() / 127.5 - 1


def to_bytes(x: Tensor) -> Tensor:
    """[-1, 1] to 0..255, rounded: truncation would map 95 of the 256 levels to their neighbour below."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
