"""The bound that training lowers: the negative log likelihood of images, in bits per dimension.

Eq. 5, sections 3.3 and 4.3:

    L = L_T + sum over t > 1 of L_{t-1} + L_0

L_{t-1} is the divergence of two Gaussians, whose means differ by a multiple of x_0 - x_0_hat. So it
needs nothing from the network but the squared error of x_0_hat at every timestep, and one pass over
the images serves every reverse variance. K visited timesteps of the schedule's T are a diffusion of
their own, with a bound of its own.

No probability is clamped. The paper's code gives every grey level at least 1e-12, which makes the
bound of a bad network too small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.diffusion.clipping import clipped
from models.diffusion.noise import normal
from models.diffusion.options import CLIPPED, Clipping, Prediction, Variance
from models.diffusion.plans import reverse_variance, x_0_from
from models.diffusion.sampling import from_bytes, split
from models.diffusion.schedule import Posterior, Schedule, linspace_grid

# a nat in bits
_NAT = 1 / math.log(2)
# a grey level in [-1, 1] is this far from its edges
_HALF_BIN = 1 / 255


@dataclass(frozen=True, slots=True)
class Terms:
    """Terms of the bound, from a pass over N images at K timesteps. Float64 on the CPU.

    Attributes:
        squared_error: The mean over dimensions of (x_0 - x_0_hat)^2, (N, K).
        prior: L_T in bits per dimension, (N,).
        decoder: L_0 in bits per dimension, (N,).
    """

    squared_error: Tensor
    prior: Tensor
    decoder: Tensor

    @classmethod
    def joined(cls, parts: Sequence[Terms]) -> Terms:
        """Join the terms of several passes, over different images."""
        return cls(
            torch.cat([part.squared_error for part in parts]),
            torch.cat([part.prior for part in parts]),
            torch.cat([part.decoder for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.prior)


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Means over the images, in bits per dimension.

    Attributes:
        bits: The rate and the distortion together.
        standard_error: That of `bits`; None for one image.
        rate: L_1 + ... + L_T.
        distortion: L_0.
    """

    bits: float
    standard_error: float | None
    rate: float
    distortion: float


@dataclass(frozen=True, slots=True)
class Coding:
    """Progressive coding (Fig. 5). Lists begin with the last timestep.

    Attributes:
        variance: The reverse variance.
        timesteps: The visited timesteps.
        rate: What is sent until x_t is known, in bits per dimension.
        rmse: The error of x_0_hat then, in grey levels of 255.
    """

    variance: Variance
    timesteps: list[int]
    rate: list[float]
    rmse: list[float]


class Evaluation:
    """A network as the reverse process that visits some of the schedule's timesteps."""

    def __init__(
        self,
        net: Callable[..., Tensor],
        schedule: Schedule,
        prediction: Prediction,
        steps: int,
        device: torch.device | str = "cpu",
        residual_variance: Tensor | None = None,
        clipping: Clipping = CLIPPED,
    ) -> None:
        """Prepare the tables.

        Args:
            net: Maps x (B, C, H, W), t int64 (B,), and classes (B,) if it has some, to the output.
            schedule: The process that it was trained on.
            prediction: What its output estimates.
            steps: How many timesteps are visited, from 2 to T.
            device: Where the network is.
            residual_variance: What the analytic variance is made of, (T,). None: the errors on the
                images that are evaluated, K numbers, each from all dimensions.
            clipping: What is done to x_0_hat.

        Raises:
            ValueError: `steps` is outside 2..T.
        """
        if steps == 1:
            raise ValueError("steps=1 leaves no transition to measure; use 2 or more")
        self.net = net
        limits = (clipping.bound, clipping.ratio, clipping.most)
        self._limits = [torch.tensor(limit, device=device) for limit in limits]
        self.device = torch.device(device)
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
        classes: Tensor | None = None,
    ) -> Terms:
        """Run the network on images at every visited timestep.

        Image i has the noise of image i of `seed`, whatever the batch.

        Args:
            pixels: uint8 (B, C, H, W).
            seed: The seed of the noise.
            indices: The images' indices, B of them.
            stepped: Called after each timestep.
            classes: The embedding's row of each image, int64 (B,), of a network with classes.

        Raises:
            FloatingPointError: The network's output is not finite.
        """
        x_0 = from_bytes(pixels.to(self.device))
        channels, height, width = x_0.shape[1:]
        shape = (channels, height, width)
        index = torch.tensor(indices, device=self.device)
        seeds = torch.full_like(index, seed)
        rows = None if classes is None else classes.to(self.device)
        errors = []
        decoder = torch.empty(0)
        for k, t in enumerate(self.tau.to(self.device)):
            eps = normal(seeds, index, t.expand_as(index) + 1, shape)
            x_0_hat = self._x_0_hat(x_0, k, t, eps, rows)
            errors.append(_per_dimension((x_0_hat.double() - x_0.double()).square()).cpu())
            if k == 0:
                sigma = math.sqrt(Posterior(self.process).variance[1])
                decoder = decoder_bits(pixels, x_0_hat.double().cpu(), sigma)
            stepped()
        prior = prior_bits(self.process, x_0.double().cpu())
        return Terms(torch.stack(errors, dim=1), prior, decoder)

    def likelihood(self, terms: Terms, variance: Variance) -> Likelihood:
        """Compute the bound with this reverse variance."""
        rate = terms.prior + self._transitions(terms, variance).sum(1)
        bits = rate + terms.decoder
        error = float(bits.std() / math.sqrt(len(bits))) if len(bits) > 1 else None
        distortion = float(terms.decoder.mean())
        return Likelihood(float(bits.mean()), error, float(rate.mean()), distortion)

    def coding(self, terms: Terms, variance: Variance) -> Coding:
        """Compute rate and distortion over the reverse steps with this reverse variance."""
        transitions = self._transitions(terms, variance).mean(0)
        nothing = torch.zeros(1, dtype=torch.float64)
        sent = terms.prior.mean() + torch.cat([nothing, transitions.flip(0).cumsum(0)])
        rmse = terms.squared_error.mean(0).sqrt() * 127.5
        return Coding(variance, self.tau.flip(0).tolist(), sent.tolist(), rmse.flip(0).tolist())

    def _transitions(self, terms: Terms, variance: Variance) -> Tensor:
        unknown = self._residual_variance
        if unknown is None:
            unknown = terms.squared_error.mean(0)
        sigma2 = reverse_variance(self.process, variance, unknown)
        return transition_bits(self.process, sigma2, terms.squared_error)

    def _x_0_hat(self, x_0: Tensor, k: int, t: Tensor, eps: Tensor, rows: Tensor | None) -> Tensor:
        """Estimate x_0 as the sampler does: clipped."""
        signal, noise, p, q = self._tables[:, k]
        x_t = signal * x_0 + noise * eps
        labels = () if rows is None else (rows,)
        out, _ = split(self.net(x_t, t.expand(len(x_t)), *labels), x_t.shape[1])
        # Clipping would hide it.
        if not out.isfinite().all():
            raise FloatingPointError(
                f"at t={int(t)} the network gives what is not finite;"
                " its weights are damaged or diverged"
            )
        return clipped(p * x_t + q * out, *self._limits)


def prior_bits(process: Schedule, x_0: Tensor) -> Tensor:
    """Compute L_T: KL of q(x_T | x_0) from N(0, I).

    x_0 float64 (B, C, H, W) -> bits per dimension (B,).
    """
    alpha_bar = process.alpha_bar[-1]
    return _per_dimension(alpha_bar * x_0.square() - alpha_bar - (1 - alpha_bar).log()) * (_NAT / 2)


def transition_bits(process: Schedule, sigma2: Tensor, squared_error: Tensor) -> Tensor:
    """Compute L_{t-1} at all timesteps but the first.

    It is the KL of q(x_{t-1} | x_t, x_0) from p(x_{t-1} | x_t) = N(mean, sigma2).

    sigma2 (K,), squared_error (N, K), float64 -> bits per dimension (N, K - 1).
    """
    posterior = Posterior(process)
    ratio = (posterior.variance / sigma2)[1:]
    apart = posterior.of_x_0[1:].square() * squared_error[:, 1:] / sigma2[1:]
    bits: Tensor = (apart + ratio - 1 - ratio.log()) * (_NAT / 2)
    return bits


def decoder_bits(pixels: Tensor, mean: Tensor, sigma: float) -> Tensor:
    """Compute L_0: what grey levels cost under a Gaussian over bins of width 2/255 (section 3.3).

    The bins at the ends are open.

    pixels uint8 and mean float64 in [-1, 1], both (B, C, H, W) -> bits per dimension (B,).
    """
    centre = pixels.double() / 127.5 - 1
    low = torch.where(pixels == 0, -math.inf, (centre - _HALF_BIN - mean) / sigma)
    high = torch.where(pixels == 255, math.inf, (centre + _HALF_BIN - mean) / sigma)
    # Mirror to the lower tail, where logarithms of the distribution function are exact.
    mirrored = low + high > 0
    low, high = torch.where(mirrored, -high, low), torch.where(mirrored, -low, high)
    log_high = torch.special.log_ndtr(high)
    log_p = log_high + (-torch.expm1(torch.special.log_ndtr(low) - log_high)).log()
    return _NAT * _per_dimension(-log_p)


def _per_dimension(values: Tensor) -> Tensor:
    """Take the mean over all dimensions but the first: (B, C, H, W) -> (B,)."""
    means: Tensor = values.flatten(1).mean(1)
    return means
