"""L_simple (Eq. 14) and its target for each kind of prediction."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.diffusion.options import Prediction
from models.diffusion.schedule import Schedule


class Diffusion:
    """q(x_t | x_0) = N(sqrt(ab_t) x_0, (1 - ab_t) I), Eq. 4.

    Attributes:
        signal: sqrt(ab_t), float32 (T,) on the device.
        noise: sqrt(1 - ab_t), float32 (T,) on the device.
    """

    def __init__(self, s: Schedule, device: torch.device | str = "cpu") -> None:
        """Cast the schedule's tables to float32, on the device."""
        self.T = s.T
        self.signal = s.alpha_bar.sqrt().float().to(device)
        self.noise = (1 - s.alpha_bar).sqrt().float().to(device)

    def x_t(self, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Diffuse: x_0 and eps (B, C, H, W), t int64 (B,) -> x_t (B, C, H, W)."""
        return self.signal[t, None, None, None] * x_0 + self.noise[t, None, None, None] * eps

    def target(self, x_0: Tensor, t: Tensor, eps: Tensor, prediction: Prediction) -> Tensor:
        """Compute what the network is trained to return, (B, C, H, W).

        It is eps, x_0, or v = sqrt(ab) eps - sqrt(1 - ab) x_0 (Salimans and Ho, 2022).
        """
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
    """Compute the mean squared error over all dimensions at uniform t, as in Algorithm 1.

    Args:
        net: Maps x_t (B, C, H, W) and t int64 (B,) to the output.
        diffusion: The forward process.
        x_0: Images in [-1, 1], (B, C, H, W).
        prediction: What the output estimates.

    Returns:
        A scalar.
    """
    t = torch.randint(0, diffusion.T, (len(x_0),), device=x_0.device)
    eps = torch.randn_like(x_0)
    out = net(diffusion.x_t(x_0, t, eps), t)
    return (out.float() - diffusion.target(x_0, t, eps, prediction)).square().mean()
