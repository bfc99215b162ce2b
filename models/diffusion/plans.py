"""Samplers as tables: a job's sampling is a plan, and a step is one row of it.

Every sampler here computes, per step and per image, from the network's output `out` at timestep t
and fresh noise z,

    x_0_hat = clip(p x + q out, -bound, bound)
    x'      = a x_0_hat + b x + d x_0_hat_previous + s z

so a sampler is a function from a schedule to K rows of numbers. They are computed in float64 and
cast once. Four more columns say what few models need, and are 0 for all others:

    ratio, most     x_0_hat is thresholded by that quantile of its image, instead of clipped
    spread, own     the network returns v beside out, and z has the standard deviation
                    s exp(spread v) + own sqrt(v) instead of s

Where a sampler's formula has eps, it is the eps that x_0_hat implies after clipping,
(x - sqrt(ab) x_0_hat) / sqrt(1 - ab), as in improved-diffusion. So the output enters through
x_0_hat alone, and DDPM with fixed_small equals DDIM with eta 1.

The K rows are in the order of execution: row 0 is at timestep T-1, and row K-1 at timestep 0 and
free of noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from struct import Struct
from typing import cast

import torch
from torch import Tensor

from models.diffusion.options import (
    CLIPPED,
    Clipping,
    LearnedVariance,
    Prediction,
    Sampler,
    Spacing,
    Variance,
)
from models.diffusion.schedule import Posterior, Schedule, timestep_grid

# sigma of noise that is two grey levels in the mean
_VISIBLE = math.sqrt(math.pi / 2) * 4 / 255
COLUMNS = ("p", "q", "bound", "a", "b", "d", "s", "ratio", "most", "spread", "own")
_ROW = Struct(f"=q{len(COLUMNS)}f")
_unpack_row = cast("Callable[[bytes, int], tuple[float, ...]]", _ROW.unpack_from)
# Below it, diffusers takes the logarithm of this instead of a variance.
_LEAST_VARIANCE = 1e-20


@dataclass(frozen=True, slots=True)
class Plan:
    """The K rows that a chain takes.

    Attributes:
        t: The timestep of each row, int64 (K,).
        rows: float32 (K, 11), the columns of COLUMNS.
        packed: both once more, as `row` reads them. Lists of numbers would take nine times as much.
    """

    t: Tensor
    rows: Tensor
    packed: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        columns = [part.view(torch.uint8).view(len(self.t), -1) for part in (self.t, self.rows)]
        object.__setattr__(self, "packed", torch.cat(columns, dim=1).numpy().tobytes())

    def __len__(self) -> int:
        # Asked for each chain of each step, and the length of a tensor takes four times as long.
        return len(self.packed) // _ROW.size

    def row(self, number: int) -> tuple[float, ...]:
        """Return t and the columns of a row as numbers, for a host that makes batches."""
        return _unpack_row(self.packed, number * _ROW.size)

    @property
    def size_bytes(self) -> int:
        """Bytes of memory that the plan takes."""
        return self.t.nbytes + self.rows.nbytes + len(self.packed)

    @property
    def remembers(self) -> bool:
        """True if a step needs the x_0_hat of the step before."""
        return bool((self.rows[:, COLUMNS.index("d")] != 0).any())


@dataclass(frozen=True, slots=True)
class Grid:
    """The timesteps that a plan visits, increasing. All tensors have shape (K,).

    Attributes:
        tau: The timesteps.
        alpha_bar: alpha_bar at each.
        alpha_bar_prev: alpha_bar one visit earlier; 1 before the first.
    """

    tau: Tensor
    alpha_bar: Tensor
    alpha_bar_prev: Tensor

    @classmethod
    def from_schedule(cls, schedule: Schedule, tau: Tensor) -> Grid:
        """Look alpha_bar up at the timesteps `tau`, int64 (K,)."""
        alpha_bar = schedule.alpha_bar[tau]
        return cls(tau, alpha_bar, torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]]))


def compile_plan(
    schedule: Schedule,
    steps: int,
    sampler: Sampler = "ddpm",
    *,
    variance: Variance = "fixed_small",
    eta: float = 0.0,
    prediction: Prediction = "epsilon",
    clip: Clipping = CLIPPED,
    residual_variance: Tensor | None = None,
    learned: LearnedVariance | None = None,
    spacing: Spacing = "linspace",
    offset: int = 0,
) -> Plan:
    """Compile a job's sampling options to a plan.

    Args:
        schedule: The process that the network was trained on, of T timesteps.
        steps: K, the number of rows.
        sampler: Which sampler.
        variance: The reverse variance of `ddpm`.
        eta: The noise of `ddim`, from 0 to 1.
        prediction: What the network's output estimates.
        clip: What is done to x_0_hat.
        residual_variance: float64 (T,), for `variance` analytic. See `reverse_variance`.
        learned: What the network returns beside its estimate, for `variance` learned.
        spacing: How the timesteps are chosen, as in `timestep_grid`.
        offset: The first timestep of the spacing `leading`.

    Raises:
        ValueError: The steps do not fit the schedule, the sampler is unknown,
            `residual_variance` or `learned` is missing, or eps says nothing of x_0 at a timestep.
    """
    tau = timestep_grid(steps, schedule.T, spacing, offset)
    if sampler == "ddpm":
        return ddpm(
            schedule,
            tau,
            variance,
            prediction=prediction,
            clip=clip,
            residual_variance=residual_variance,
            learned=learned,
        )
    if sampler == "ddim":
        return ddim(schedule, tau, eta, prediction=prediction, clip=clip)
    if sampler != "dpmpp_2m":
        raise ValueError(f"sampler={sampler!r} is unknown; use ddpm, ddim or dpmpp_2m")
    return dpmpp_2m(schedule, tau, prediction=prediction, clip=clip)


def ddpm(
    schedule: Schedule,
    tau: Tensor,
    variance: Variance,
    *,
    prediction: Prediction = "epsilon",
    clip: Clipping = CLIPPED,
    residual_variance: Tensor | None = None,
    learned: LearnedVariance | None = None,
) -> Plan:
    """Compile Algorithm 2 on the timesteps `tau`, int64 (K,).

    beta is recomputed on them (Nichol and Dhariwal, 2021, section 4).

    The network takes the last noise of an image for a part of the image. The analytic variance
    holds everything that is unknown there. So if `clip` says that these are images, that step's
    noise is capped at two grey levels, or at fixed_small if that is more. (The cap is as in Bao et
    al., 2022, "Analytic-DPM".)

    Raises:
        ValueError: The analytic variance has no `residual_variance` (T,), or the learned one no
            `learned`.
    """
    process = schedule.respaced(tau)
    posterior = Posterior(process)
    g = Grid.from_schedule(schedule, tau)
    d = torch.zeros_like(posterior.variance)
    spread, own = d, d
    if variance == "learned":
        sigma, spread, own = _learned_sigma(process, learned)
    else:
        unknown = None if residual_variance is None else residual_variance[tau]
        sigma = reverse_variance(process, variance, unknown).sqrt()
    if clip.limits and variance == "analytic":
        sigma[1:2] = sigma[1:2].minimum(posterior.variance[1:2].sqrt().clamp(min=_VISIBLE))
    columns = posterior.of_x_0, posterior.of_x_t, d, sigma
    return _plan(g, prediction, clip, *columns, spread=spread, own=own)


def _learned_sigma(
    process: Schedule, learned: LearnedVariance | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute s, spread and own, (T,), with sigma = s exp(spread v) + own sqrt(v).

    In a range, v in [-1, 1] interpolates log sigma^2 between fixed_small and fixed_large
    (Nichol and Dhariwal, 2021, Eq. 15).
    """
    nothing = torch.zeros_like(process.beta)
    if learned is None:
        raise ValueError("the network learned no variance; use fixed_small or fixed_large")
    if learned == "learned":
        return nothing, nothing, torch.ones_like(nothing)
    small = Posterior(process).variance.clamp(min=_LEAST_VARIANCE).log()
    large = process.beta.log()
    return ((small + large) / 4).exp(), (large - small) / 4, nothing


def reverse_variance(
    process: Schedule, variance: Variance, residual_variance: Tensor | None = None
) -> Tensor:
    """Compute sigma_t^2 of p(x_{t-1} | x_t).

    The analytic one is beta_tilde plus a^2 times the residual variance (Bao et al., 2022,
    "Analytic-DPM").

    Args:
        process: A process of T timesteps.
        variance: Which one.
        residual_variance: float64 (T,), the mean over pixels of Var(x_0 | x_t), which is what x_t
            leaves unknown of x_0. For a network that is not perfect, it is its squared error.

    Returns:
        float64 (T,).

    Raises:
        ValueError: The analytic variance has no `residual_variance`, or the variance is the
            learned one, which is no table.
    """
    posterior = Posterior(process)
    if variance == "learned":
        raise ValueError("a learned variance is the network's; use another one")
    if variance == "fixed_large":
        return process.beta
    if variance == "fixed_small":
        return posterior.variance
    if residual_variance is None:
        raise ValueError(
            "the analytic variance needs residual_variance, shape (T,);"
            " estimate it on training data"
        )
    return posterior.variance + posterior.of_x_0.square() * residual_variance


def ddim(
    schedule: Schedule,
    tau: Tensor,
    eta: float,
    *,
    prediction: Prediction = "epsilon",
    clip: Clipping = CLIPPED,
) -> Plan:
    """Compile DDIM (Song et al., 2021, Eq. 12) on the timesteps `tau`, int64 (K,).

    eta 0 is deterministic, and eta 1 is DDPM with fixed_small.
    """
    g = Grid.from_schedule(schedule, tau)
    beta_tilde = (1 - g.alpha_bar_prev) / (1 - g.alpha_bar) * (1 - g.alpha_bar / g.alpha_bar_prev)
    of_eps = (1 - g.alpha_bar_prev - eta**2 * beta_tilde).clamp(min=0).sqrt()
    b = of_eps / (1 - g.alpha_bar).sqrt()
    a = g.alpha_bar_prev.sqrt() - b * g.alpha_bar.sqrt()
    return _plan(g, prediction, clip, a, b, torch.zeros_like(a), eta * beta_tilde.sqrt())


def dpmpp_2m(
    schedule: Schedule, tau: Tensor, *, prediction: Prediction = "epsilon", clip: Clipping = CLIPPED
) -> Plan:
    """Compile DPM-Solver++(2M), Lu et al., 2022, Algorithm 2, on the timesteps `tau`, int64 (K,).

    It is of first order at the first step, and at the last one, which ends at noise 0.
    """
    g = Grid.from_schedule(schedule, tau)
    log_snr = (g.alpha_bar / (1 - g.alpha_bar)).log() / 2
    # row i goes from tau_i to tau_{i-1}
    h = torch.cat([torch.full((1,), math.inf, dtype=torch.float64), log_snr.diff().neg()])
    b = ((1 - g.alpha_bar_prev) / (1 - g.alpha_bar)).sqrt()
    first_order = g.alpha_bar_prev.sqrt() - b * g.alpha_bar.sqrt()
    # D = (1 + 1/2r) x_0_hat - 1/2r x_0_hat_previous, with r = h_previous / h. The previous row is
    # at tau_{i+1}.
    half_over_r = torch.zeros_like(b)
    half_over_r[1:-1] = h[1:-1] / h[2:] / 2
    a = first_order * (1 + half_over_r)
    d = -first_order * half_over_r
    return _plan(g, prediction, clip, a, b, d, torch.zeros_like(b))


def _plan(
    g: Grid,
    prediction: Prediction,
    clip: Clipping,
    a: Tensor,
    b: Tensor,
    d: Tensor,
    s: Tensor,
    *,
    spread: Tensor | None = None,
    own: Tensor | None = None,
) -> Plan:
    """Turn columns over increasing tau into rows in the order of execution.

    The last row gives x_0_hat exactly, without noise.
    """
    if prediction == "epsilon" and bool((g.alpha_bar == 0).any()):
        raise ValueError(
            "eps says nothing of x_0 at the last timestep, where zero terminal SNR leaves only"
            " noise; the prediction must be v_prediction or sample"
        )
    p, q = x_0_from(prediction, g.alpha_bar)
    nothing = torch.zeros_like(p)
    bound = torch.full_like(p, math.inf if clip.is_dynamic else clip.bound)
    ratio = torch.full_like(p, clip.ratio)
    most = torch.full_like(p, clip.most if clip.is_dynamic else 0.0)
    s, spread, own = (
        torch.cat([nothing[:1], column[1:]])
        for column in (s, nothing if spread is None else spread, nothing if own is None else own)
    )
    rows = torch.stack([p, q, bound, a, b, d, s, ratio, most, spread, own], dim=1)
    return Plan(g.tau.flip(0), rows.flip(0).float().contiguous())


def x_0_from(prediction: Prediction, alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
    """Compute p and q with x_0_hat = p x_t + q out, in the shape of alpha_bar.

    Eq. 15 for epsilon; Salimans and Ho, 2022, for v.
    """
    if prediction == "epsilon":
        return alpha_bar.rsqrt(), -((1 - alpha_bar) / alpha_bar).sqrt()
    if prediction == "sample":
        return torch.zeros_like(alpha_bar), torch.ones_like(alpha_bar)
    return alpha_bar.sqrt(), -(1 - alpha_bar).sqrt()
