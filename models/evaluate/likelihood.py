"""What training bounds: the negative log likelihood of pictures, in bits per dimension (Eq. 5; sections 3.3 and 4.3).

    L = L_T + sum over t > 1 of L_{t-1} + L_0

L_{t-1} is the divergence of two Gaussians whose means differ by a multiple of x_0 - x_0_hat, so of the network it needs the
squared error of x_0_hat at every timestep and nothing else. One pass over the pictures serves every reverse variance.
K visited timesteps of the schedule's T are a diffusion of their own, with a bound of its own.

No probability is clamped. The paper's code gives no grey level less than 1e-12, which makes a bad network's bound too small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.diffusion.noise import normal
from models.diffusion.options import Prediction, Variance
from models.diffusion.plans import reverse_variance, x_0_from
from models.diffusion.sampling import Network, from_bytes
from models.diffusion.schedule import Posterior, Schedule, linspace_grid

_NAT = 1 / math.log(2)  # in bits
_HALF_BIN = 1 / 255  # a grey level in [-1, 1] is this far from its edges


@dataclass(frozen=True, slots=True)
class Terms:
    """What a pass over N pictures finds at K timesteps. Float64 on the CPU; bits are per dimension."""

    squared_error: Tensor  # (N, K): the mean over dimensions of (x_0 - x_0_hat)^2
    prior: Tensor  # (N,): L_T in bits
    decoder: Tensor  # (N,): L_0 in bits

    @classmethod
    def joined(cls, parts: Sequence[Terms]) -> Terms:
        """Of the pictures of all parts."""
        columns = zip(
            *((part.squared_error, part.prior, part.decoder) for part in parts), strict=True
        )
        return cls(*(torch.cat(column) for column in columns))

    def __len__(self) -> int:
        return len(self.prior)


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Means over the pictures, bits per dimension. `bits` is the `rate`, L_1 + ... + L_T, and the `distortion`, L_0."""

    bits: float
    standard_error: float | None  # None of one picture
    rate: float
    distortion: float


@dataclass(frozen=True, slots=True)
class Coding:
    """Progressive coding (Fig. 5): what is sent until x_t is known, and how near x_0_hat is then. The last timestep first."""

    variance: Variance
    timesteps: list[int]
    rate: list[float]  # bits per dimension
    rmse: list[float]  # grey levels of 255


class Evaluation:
    """Of a network as the reverse process that visits `steps` of the schedule's timesteps. Raises ValueError unless 2 to T.

    `residual_variance` (T,): what the analytic variance is made of; None: what the pictures that are evaluated say, K numbers,
    each from the errors of all their dimensions.
    """

    def __init__(
        self,
        net: Network,
        schedule: Schedule,
        prediction: Prediction,
        steps: int,
        device: torch.device | str = "cpu",
        residual_variance: Tensor | None = None,
    ) -> None:
        if steps == 1:
            raise ValueError("steps=1 leaves no transition to measure; use 2 or more")
        self.net, self.device = net, torch.device(device)
        self.tau = linspace_grid(steps, schedule.T)
        self.process = schedule.respaced(self.tau)
        self._residual_variance = None if residual_variance is None else residual_variance[self.tau]
        alpha_bar = self.process.alpha_bar
        p, q = x_0_from(prediction, alpha_bar)
        tables = torch.stack([alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), p, q])
        self._tables = tables.float().to(self.device)

    @torch.inference_mode()
    def terms(
        self,
        pixels: Tensor,
        seed: int,
        indices: Sequence[int],
        stepped: Callable[[], object] = lambda: None,
    ) -> Terms:
        """Of pictures `indices`, uint8 (B, C, H, W). `stepped` is called after each timestep.

        Picture i has the noise of image i of `seed`, whatever the batch. Raises FloatingPointError where the network's output
        is not finite.
        """
        x_0 = from_bytes(pixels.to(self.device))
        channels, height, width = x_0.shape[1:]
        index = torch.tensor(indices, device=self.device)
        errors, decoder = [], torch.empty(0)
        for k, t in enumerate(self.tau.to(self.device)):
            eps = normal(
                torch.full_like(index, seed),
                index,
                t.expand_as(index) + 1,
                (channels, height, width),
            )
            x_0_hat = self._x_0_hat(x_0, k, t, eps)
            errors.append(_per_dimension((x_0_hat.double() - x_0.double()).square()).cpu())
            if k == 0:
                decoder = decoder_bits(
                    pixels, x_0_hat.double().cpu(), math.sqrt(Posterior(self.process).variance[1])
                )
            stepped()
        return Terms(
            torch.stack(errors, dim=1), prior_bits(self.process, x_0.double().cpu()), decoder
        )

    def likelihood(self, terms: Terms, variance: Variance) -> Likelihood:
        rate = terms.prior + self._transitions(terms, variance).sum(1)
        bits = rate + terms.decoder
        error = float(bits.std() / math.sqrt(len(bits))) if len(bits) > 1 else None
        return Likelihood(
            float(bits.mean()), error, float(rate.mean()), float(terms.decoder.mean())
        )

    def coding(self, terms: Terms, variance: Variance) -> Coding:
        transitions = self._transitions(terms, variance).mean(0)
        sent = terms.prior.mean() + torch.cat(
            [torch.zeros(1, dtype=torch.float64), transitions.flip(0).cumsum(0)]
        )
        rmse = terms.squared_error.mean(0).sqrt() * 127.5
        return Coding(variance, self.tau.flip(0).tolist(), sent.tolist(), rmse.flip(0).tolist())

    def _transitions(self, terms: Terms, variance: Variance) -> Tensor:
        unknown = (
            terms.squared_error.mean(0)
            if self._residual_variance is None
            else self._residual_variance
        )
        sigma2 = reverse_variance(self.process, variance, unknown)
        return transition_bits(self.process, sigma2, terms.squared_error)

    def _x_0_hat(self, x_0: Tensor, k: int, t: Tensor, eps: Tensor) -> Tensor:
        """As the sampler has it: clipped."""
        signal, noise, p, q = self._tables[:, k]
        x_t = signal * x_0 + noise * eps
        out = self.net(x_t, t.expand(len(x_t)))
        if not out.isfinite().all():  # clipping would hide it
            raise FloatingPointError(
                f"at t={int(t)} the network gives what is not finite; its weights are damaged or diverged"
            )
        x_0_hat: Tensor = (p * x_t + q * out).clamp(-1, 1)
        return x_0_hat


def prior_bits(process: Schedule, x_0: Tensor) -> Tensor:
    """L_T: KL of q(x_T | x_0) from N(0, I). x_0 float64 (B, C, H, W) -> bits per dimension (B,)."""
    alpha_bar = process.alpha_bar[-1]
    return _per_dimension(alpha_bar * x_0.square() - alpha_bar - (1 - alpha_bar).log()) * (_NAT / 2)


def transition_bits(process: Schedule, sigma2: Tensor, squared_error: Tensor) -> Tensor:
    """L_{t-1}: KL of q(x_{t-1} | x_t, x_0) from p(x_{t-1} | x_t) = N(mean, sigma2) at all timesteps but the first.

    sigma2 (K,), squared_error (N, K), float64 -> bits per dimension (N, K - 1).
    """
    posterior = Posterior(process)
    ratio = (posterior.variance / sigma2)[1:]
    apart = posterior.of_x_0[1:].square() * squared_error[:, 1:] / sigma2[1:]
    bits: Tensor = (apart + ratio - 1 - ratio.log()) * (_NAT / 2)
    return bits


def decoder_bits(pixels: Tensor, mean: Tensor, sigma: float) -> Tensor:
    """L_0: what the grey levels cost under a Gaussian over bins of width 2/255, those at the ends open (section 3.3).

    pixels uint8 and mean float64 in [-1, 1], both (B, C, H, W) -> bits per dimension (B,).
    """
    centre = pixels.double() / 127.5 - 1
    low = torch.where(pixels == 0, -math.inf, (centre - _HALF_BIN - mean) / sigma)
    high = torch.where(pixels == 255, math.inf, (centre + _HALF_BIN - mean) / sigma)
    mirrored = (
        low + high > 0
    )  # to the lower tail, where logarithms of the distribution function are exact
    low, high = torch.where(mirrored, -high, low), torch.where(mirrored, -low, high)
    log_high = torch.special.log_ndtr(high)
    log_p = log_high + (-torch.expm1(torch.special.log_ndtr(low) - log_high)).log()
    return _NAT * _per_dimension(-log_p)


def _per_dimension(values: Tensor) -> Tensor:
    """The mean over all but the first: (B, C, H, W) -> (B,)."""
    means: Tensor = values.flatten(1).mean(1)
    return means
