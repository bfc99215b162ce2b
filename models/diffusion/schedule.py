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

from models.diffusion.options import Spacing, leading_fits

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
    ValueError. The last beta may be 1, which leaves nothing of the image (zero terminal SNR).
    """

    beta: Tensor

    def __post_init__(self) -> None:
        if self.beta.dtype != torch.float64 or self.beta.ndim != 1:
            raise ValueError(
                f"beta is {self.beta.dtype} of shape {tuple(self.beta.shape)};"
                " give float64 of shape (T,)"
            )
        inside = (self.beta > 0) & (self.beta < 1)
        inside[-1:] |= self.beta[-1:] == 1
        if not bool(inside.all()):
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

    @classmethod
    def scaled_linear(
        cls, T: int = LINEAR_T, start: float = LINEAR_START, end: float = LINEAR_END
    ) -> Schedule:
        """Increase sqrt(beta) linearly (Rombach et al., 2022)."""
        return cls(torch.linspace(start**0.5, end**0.5, T, dtype=torch.float64).square())

    @classmethod
    def sigmoid(
        cls, T: int = LINEAR_T, start: float = LINEAR_START, end: float = LINEAR_END
    ) -> Schedule:
        """Increase beta from `start` to `end` along a sigmoid over [-6, 6] (GeoDiff, 2022)."""
        edges = torch.linspace(-6, 6, T, dtype=torch.float64)
        return cls(torch.sigmoid(edges) * (end - start) + start)

    @classmethod
    def laplace(cls, T: int = LINEAR_T, beta_max: float = 0.999) -> Schedule:
        """Follow the alpha_bar that diffusers calls `laplace`, with beta capped at `beta_max`.

        log SNR has Laplace's distribution (Hang et al., 2024).
        """
        edges = torch.arange(T + 1, dtype=torch.float64) / T
        from_middle = 0.5 - edges
        side = torch.where(from_middle < 0, -1.0, 1.0).double()
        log_snr = -0.5 * side * (1 - 2 * from_middle.abs() + 1e-6).log()
        alpha_bar = torch.sigmoid(log_snr).sqrt()
        return cls((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=beta_max))

    def with_zero_terminal_snr(self) -> Schedule:
        """Shift and scale sqrt(alpha_bar) so that it ends at 0 (Lin et al., 2023, Algorithm 1).

        Raises:
            ValueError: There is one timestep, which would be nothing but noise, or alpha_bar does
                not fall from step to step.
        """
        if self.T == 1:
            raise ValueError("one timestep cannot end at zero SNR; use two or more")
        root = self.alpha_bar.sqrt()
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        alpha_bar = root.square()
        before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
        if not bool((before > 0).all()):
            ends = f"{self.alpha_bar[0]:g} to {self.alpha_bar[-1]:g}"
            raise ValueError(
                f"alpha_bar goes from {ends} and cannot be rescaled to zero SNR;"
                " use fewer timesteps, or other betas"
            )
        return Schedule(1 - alpha_bar / before)

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
    def has_zero_terminal_snr(self) -> bool:
        """True if x_T holds nothing of the image, so that eps says nothing of it."""
        return bool(self.beta[-1] == 1)

    @property
    def can_be_reversed(self) -> bool:
        """True if alpha_bar falls at every timestep, and stays above 0, in float32 too.

        Otherwise x_0_hat would not be finite. With zero terminal SNR the last is 0 by intent.
        """
        falls = bool((self.alpha_bar < self.alpha_bar_prev).all())
        smallest = self.alpha_bar[-2:][:1] if self.has_zero_terminal_snr else self.alpha_bar[-1:]
        return falls and bool((smallest.float() > 0).all())

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
        return Schedule(torch.where(alpha_bar > 0, beta.clamp(max=_BELOW_1), beta))


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


def timestep_grid(steps: int, T: int, spacing: Spacing = "linspace", offset: int = 0) -> Tensor:
    """Choose K = `steps` of T timesteps.

    Args:
        steps: K.
        T: The timesteps of the schedule.
        spacing: linspace reaches from 0 to T-1. leading has the stride T // K from `offset` on.
            trailing has the stride T / K back from T-1. (Lin et al., 2023, table 2.)
        offset: The first timestep of `leading`. The others do not use it.

    Returns:
        int64 (K,), increasing.

    Raises:
        ValueError: K is outside 1..T, or the grid ends beyond T-1.
    """
    if spacing == "linspace":
        return linspace_grid(steps, T)
    _check_steps(steps, T)
    if spacing == "trailing":
        grid = np.round(T - np.arange(steps) * (T / steps))[::-1] - 1
        return torch.from_numpy(grid.astype(np.int64))
    if not leading_fits(steps, T, offset):
        last = (steps - 1) * (T // steps) + offset
        raise ValueError(
            f"steps={steps} with the offset {offset} ends at timestep {last}, beyond {T - 1};"
            " use other steps"
        )
    return torch.arange(steps) * (T // steps) + offset


def linspace_grid(steps: int, T: int) -> Tensor:
    """Spread K = `steps` timesteps from 0 to T-1 at stride (T-1)/(K-1), rounded.

    K = 1 is T-1 alone. NumPy computes them as in diffusers: for 173 of the K up to 1000 a timestep
    lies halfway, and torch.linspace rounds it to the other side.

    Returns:
        int64 (K,), increasing.

    Raises:
        ValueError: K is outside 1..T.
    """
    _check_steps(steps, T)
    if steps == 1:
        return torch.tensor([T - 1])
    return torch.from_numpy(np.linspace(0, T - 1, steps).round().astype(np.int64))


def _check_steps(steps: int, T: int) -> None:
    if not 1 <= steps <= T:
        raise ValueError(
            f"steps={steps} does not fit the {T} timesteps of the schedule; use 1 to {T}"
        )
