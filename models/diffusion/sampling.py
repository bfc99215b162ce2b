"""Algorithm 2 as one plain loop.

It is obviously right rather than fast. The engine is tested against it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from models.diffusion.clipping import clipped, standard_deviation
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
    """Sample images step by step.

    Args:
        net: Maps x (B, C, H, W) and t int64 (B,) to the output that the plan was compiled for,
            and to the learned variance beside it if there is one: (B, C or 2C, H, W).
        plan: The rows to take.
        seed: The seed of all noise.
        indices: The images' indices, B of them.
        shape: An image's (C, H, W).
        device: Where the network is.
        start: x at the plan's first timestep, (B, C, H, W). None: noise.

    Yields:
        x and x_0_hat after each row, float32 (B, C, H, W).
    """
    index = torch.tensor(indices, device=device)

    def z(draw: int) -> Tensor:
        return normal(torch.full_like(index, seed), index, torch.full_like(index, draw), shape)

    x = z(0) if start is None else start
    previous = torch.zeros_like(x)
    rows = zip(plan.t.to(device), plan.rows.to(device), strict=True)
    for k, (t, (p, q, bound, a, b, d, s, *rest)) in enumerate(rows):
        ratio, most, spread, own = rest
        out, v = split(net(x, t.expand(len(x))), shape[0])
        x_0_hat = clipped(p * x + q * out, bound, ratio, most)
        sigma = standard_deviation(s, spread, own, v)
        x = a * x_0_hat + b * x + d * previous + sigma * z(k + 1)
        previous = x_0_hat
        yield x, x_0_hat


def split(out: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Part a network's output into its estimate and the learned variance, which may be empty."""
    return out[:, :channels], out[:, channels:]


def of_class(
    net: Callable[[Tensor, Tensor, Tensor], Tensor],
    row: int,
    null_row: int | None = None,
    guidance: float = 1.0,
) -> Network:
    """Make a network of one class out of a conditional one, with guidance (Ho and Salimans 2022).

    The estimate is null + w (conditional - null), and a learned variance is that of the class.

    Args:
        net: Maps x (B, C, H, W), t int64 (B,) and rows of classes int64 (B,) to its output.
        row: The class, as a row of the embedding.
        null_row: The row that means no class, which guidance needs.
        guidance: The weight w. 1 is none, and takes one pass instead of two.

    Raises:
        ValueError: There is to be guidance, and no row means no class.
    """
    if guidance != 1 and null_row is None:
        raise ValueError(f"guidance={guidance:g} needs a null class, and there is none; leave 1")

    def conditional(x: Tensor, t: Tensor) -> Tensor:
        return net(x, t, torch.full_like(t, row))

    def guided(x: Tensor, t: Tensor) -> Tensor:
        estimate, v = split(conditional(x, t), x.shape[1])
        null, _ = split(net(x, t, torch.full_like(t, null_row or 0)), x.shape[1])
        return torch.cat([null + guidance * (estimate - null), v], dim=1)

    return conditional if guidance == 1 else guided


@torch.inference_mode()
def sample(
    net: Network,
    plan: Plan,
    seed: int,
    indices: Sequence[int],
    shape: tuple[int, int, int],
    device: torch.device | str = "cpu",
) -> Tensor:
    """Sample images as `chain` does, and return the finished x, float32 (B, C, H, W)."""
    for x, _ in chain(net, plan, seed, indices, shape, device):
        finished = x
    return finished


def from_bytes(pixels: Tensor) -> Tensor:
    """Map 0..255 to [-1, 1], float32. `to_bytes` maps it back."""
    return pixels.float() / 127.5 - 1


def to_bytes(x: Tensor) -> Tensor:
    """Map [-1, 1] to 0..255, rounded to uint8.

    Truncation would map 95 of the 256 levels to their neighbour below.
    """
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
