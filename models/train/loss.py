"""L_simple (Eq. 14) and its target for each kind of prediction."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.diffusion.options import Prediction
from models.diffusion.schedule import Schedule


class Diffusion:
    """q(x_t | x_0) = N(sqrt(ab_t) x_0, (1 - ab_t) I), Eq. 4, with its tables on a device in float32, shape (T,)."""

    def __init__(self, s: Schedule, device: torch.device | str = "cpu") -> None:
        self.T = s.T
        self.signal = s.alpha_bar.sqrt().float().to(device)
        self.noise = (1 - s.alpha_bar).sqrt().float().to(device)

    def x_t(self, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_0, eps (B, C, H, W) and t (B,) -> (B, C, H, W)."""
        return self.signal[t, None, None, None] * x_0 + self.noise[t, None, None, None] * eps

    def target(self, x_0: Tensor, t: Tensor, eps: Tensor, prediction: Prediction) -> Tensor:
        """What the network is to give: eps, x_0, or v = sqrt(ab) eps - sqrt(1 - ab) x_0 (Salimans and Ho, 2022)."""
        if prediction == "epsilon":
            return eps
        if prediction == "sample":
            return x_0
        return self.signal[t, None, None, None] * eps - self.noise[t, None, None, None] * x_0


def simple_loss(
    net: Callable[[Tensor, Tensor], Tensor],
    diffusion: Diffusion,
    x_0: Tensor,
    prediction: Prediction = "epsilon",
) -> Tensor:
    """Mean squared error over all dimensions at uniform t: one line of Algorithm 1. x_0 (B, C, H, W) in [-1, 1]; a scalar."""
    t = torch.randint(0, diffusion.T, (len(x_0),), device=x_0.device)
    eps = torch.randn_like(x_0)
    out = net(diffusion.x_t(x_0, t, eps), t)
    return (out.float() - diffusion.target(x_0, t, eps, prediction)).square().mean()
