"""Between two pictures (section 4.4): the forward process encodes them, the reverse one decodes what lies between."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from models.diffusion.noise import normal
from models.diffusion.plans import Plan
from models.diffusion.sampling import Network, chain
from models.diffusion.schedule import Schedule


@torch.inference_mode()
def interpolate(
    net: Network,
    schedule: Schedule,
    plan: Plan,
    pair: Tensor,
    weights: Sequence[float],
    seed: int,
    stepped: Callable[[], object] = lambda: None,
) -> Tensor:
    """x_0 of (1 - weight) x_t + weight x_t' for each of N weights, float32 (N, C, H, W); t is the plan's first timestep.

    `pair` float32 (2, C, H, W) in [-1, 1], on the network's device. x_t and x_t' hold the noise of images 0 and 1 of `seed`;
    all weights share them, and the noise of the way back, so that neighbours differ by their weights alone. `stepped` is called
    after each step.
    """
    x_t = encode(schedule, pair, plan.timesteps[0], seed)
    between = torch.stack([torch.lerp(x_t[0], x_t[1], weight) for weight in weights])
    for x, _ in chain(net, plan, seed, [0] * len(weights), _shape(pair), pair.device, between):
        decoded = x
        stepped()
    return decoded


def encode(schedule: Schedule, x_0: Tensor, t: int, seed: int) -> Tensor:
    """q(x_t | x_0), Eq. 4: picture i (of B, C, H, W) with the noise that image i of `seed` starts from."""
    index = torch.arange(len(x_0), device=x_0.device)
    eps = normal(torch.full_like(index, seed), index, torch.zeros_like(index), _shape(x_0))
    alpha_bar = float(schedule.alpha_bar[t])
    x_t: Tensor = alpha_bar**0.5 * x_0 + (1 - alpha_bar) ** 0.5 * eps
    return x_t


def _shape(x: Tensor) -> tuple[int, int, int]:
    channels, height, width = x.shape[1:]
    return channels, height, width
