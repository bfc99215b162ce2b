"""The forward process: variances beta_t and what follows from them, in float64.

There are T timesteps. Arrays are 0-based: index 0 is the paper's t = 1. Tables stay in float64, and
their users cast once, at the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# the paper's schedule (section 4)
LINEAR_T = 1000
LINEAR_START = 1e-4
LINEAR_END = 0.02
# the largest float64 below 1: a beta of 1 - 1e-22 is rounded up to 1
_BELOW_1 = math.nextafter(1.0, 0.0)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Variances of q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I), Eq. 2.

    `beta` is float64, of shape (T,). Any other dtype or shape, and values outside (0, 1), raise
    ValueError.
    """

    beta: Tensor

    def __post_init__(self) -> None:
        if self.beta.dtype != torch.float64 or self.beta.ndim != 1:
            raise ValueError(
                f"beta is {self.beta.dtype} of shape {tuple(self.beta.shape)};"
                " give float64 of shape (T,)"
            )
        if not bool(((self.beta > 0) & (self.beta < 1)).all()):
            raise ValueError(
                f"beta reaches from {self.beta.min():g} to {self.beta.max():g};"
                " keep it inside (0, 1)"
            )

    @classmethod
    def linear(
        cls, T: int = LINEAR_T, start: float = LINEAR_START, end: float = LINEAR_END
    ) -> Schedule:
        """Increase beta linearly from `start` to `end` (section 4 of the paper)."""
        return cls(torch.linspace(start, end, T, dtype=torch.float64))

    @classmethod
    def cosine(cls, T: int = LINEAR_T, s: float = 0.008, beta_max: float = 0.999) -> Schedule:
        """Follow alpha_bar(t) = cos^2((t/T + s) / (1 + s) pi/2), with beta capped at `beta_max`.

        Eq. 17 of Nichol and Dhariwal, 2021.
        """
        edges = torch.arange(T + 1, dtype=torch.float64) / T
        alpha_bar = torch.cos((edges + s) / (1 + s) * math.pi / 2) ** 2
        return cls((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=beta_max))

    @property
    def T(self) -> int:
        """Number of timesteps."""
        return len(self.beta)

    @property
    def alpha(self) -> Tensor:
        """1 - beta_t, shape (T,)."""
        return 1 - self.beta

    @property
    def alpha_bar(self) -> Tensor:
        """prod_{s <= t} alpha_s, shape (T,)."""
        return self.alpha.cumprod(0)

    @property
    def alpha_bar_prev(self) -> Tensor:
        """alpha_bar_{t-1}, with 1 before the first, shape (T,)."""
        return torch.cat([torch.ones(1, dtype=torch.float64), self.alpha_bar[:-1]])

    @property
    def can_be_reversed(self) -> bool:
        """True if alpha_bar falls at every timestep, and stays above 0, in float32 too.

        Otherwise x_0_hat would not be finite.
        """
        falls = bool((self.alpha_bar < self.alpha_bar_prev).all())
        return falls and bool(self.alpha_bar[-1].float() > 0)

    def respaced(self, timesteps: Tensor) -> Schedule:
        """Make the process that visits only `timesteps`, (K,): beta'_i = 1 - ab_i / ab_{i-1}.

        Nichol and Dhariwal, 2021, section 4.

        Raises:
            ValueError: The grid does not increase, so a beta' would be 0.
        """
        if bool((timesteps.diff() <= 0).any()):
            raise ValueError("a timestep grid must increase strictly; drop its duplicates")
        alpha_bar = self.alpha_bar[timesteps]
        before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
        beta = 1 - alpha_bar / before
        return Schedule(beta.clamp(max=_BELOW_1))


class Posterior:
    """q(x_{t-1} | x_t, x_0), Eqs. 6 and 7. Float64 tables over t = 0..T-1, shape (T,).

    Attributes:
        of_x_0: The mean's coefficient of x_0.
        of_x_t: The mean's coefficient of x_t.
        variance: beta_tilde_t.
    """

    def __init__(self, s: Schedule) -> None:
        self.of_x_0 = s.alpha_bar_prev.sqrt() * s.beta / (1 - s.alpha_bar)
        self.of_x_t = s.alpha.sqrt() * (1 - s.alpha_bar_prev) / (1 - s.alpha_bar)
        self.variance = s.beta * (1 - s.alpha_bar_prev) / (1 - s.alpha_bar)


def linspace_grid(steps: int, T: int) -> Tensor:
    """Spread K = `steps` timesteps from 0 to T-1 at stride (T-1)/(K-1), rounded.

    K = 1 is T-1 alone. NumPy computes them as in diffusers: for 173 of the K up to 1000 a timestep
    lies halfway, and torch.linspace rounds it to the other side.

    Returns:
        int64 (K,), increasing.

    Raises:
        ValueError: K is outside 1..T.
    """
    if not 1 <= steps <= T:
        raise ValueError(
            f"steps={steps} does not fit the {T} timesteps of the schedule; use 1 to {T}"
        )
    if steps == 1:
        return torch.tensor([T - 1])
    return torch.from_numpy(np.linspace(0, T - 1, steps).round().astype(np.int64))
