"""Interpolation between two images (section 4.4).

The forward process encodes them, and the reverse process decodes what lies between.
"""

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
    """Decode (1 - weight) x_t + weight x_t' for each weight, where t is the plan's first timestep.

    x_t and x_t' hold the noise of images 0 and 1 of `seed`. All weights share them, and the noise
    of the way back, so that neighbours differ by their weights alone.

    Args:
        net: The network that the plan was compiled for.
        schedule: The forward process.
        plan: The reverse process.
        pair: x_0 of both images, float32 (2, C, H, W) in [-1, 1], on the network's device.
        weights: N of them, from 0 for the first image to 1 for the second.
        seed: The seed of all noise.
        stepped: Called after each step.

    Returns:
        x_0, float32 (N, C, H, W).
    """
    x_t = encode(schedule, pair, int(plan.t[0]), seed)
    between = torch.stack([torch.lerp(x_t[0], x_t[1], weight) for weight in weights])
    for x, _ in chain(net, plan, seed, [0] * len(weights), _shape(pair), pair.device, between):
        decoded = x
        stepped()
    return decoded


def encode(schedule: Schedule, x_0: Tensor, t: int, seed: int) -> Tensor:
    """Sample q(x_t | x_0), Eq. 4: image i with the noise that image i of `seed` starts from.

    x_0 float32 (B, C, H, W) -> x_t, the same.
    """
    index = torch.arange(len(x_0), device=x_0.device)
    eps = normal(torch.full_like(index, seed), index, torch.zeros_like(index), _shape(x_0))
    alpha_bar = float(schedule.alpha_bar[t])
    x_t: Tensor = alpha_bar**0.5 * x_0 + (1 - alpha_bar) ** 0.5 * eps
    return x_t


def _shape(x: Tensor) -> tuple[int, int, int]:
    channels, height, width = x.shape[1:]
    return channels, height, width
