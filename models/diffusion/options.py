"""Options that a job or a card may name: samplers, variances, outputs, clipping, spacing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Sampler = Literal["ddpm", "ddim", "dpmpp_2m"]
SAMPLERS: tuple[Sampler, ...] = ("ddpm", "ddim", "dpmpp_2m")

FixedVariance = Literal["fixed_small", "fixed_large"]
# what a model may be published with
PublishedVariance = Literal[FixedVariance, "learned"]
Variance = Literal[FixedVariance, "analytic", "learned"]
# What the second half of a network's output is: the variance itself, or its place in a range.
LearnedVariance = Literal["learned", "learned_range"]

Prediction = Literal["epsilon", "sample", "v_prediction"]
Spacing = Literal["linspace", "leading", "trailing"]


@dataclass(frozen=True, slots=True)
class Clipping:
    """How x_0_hat is kept near what an image can be.

    Attributes:
        bound: x_0_hat is clipped to [-bound, bound]. Infinity: it is not clipped.
        ratio: The quantile of |x_0_hat| that dynamic thresholding takes (Saharia et al., 2022,
            section 2.3), instead of `bound`. 0: no thresholding.
        most: The largest threshold.
    """

    bound: float = 1.0
    ratio: float = 0.0
    most: float = 1.0

    @property
    def is_dynamic(self) -> bool:
        """True if the threshold depends on the image."""
        return self.ratio > 0

    @property
    def limits(self) -> bool:
        """True if x_0_hat is clipped or thresholded at all."""
        return self.is_dynamic or self.bound < math.inf


CLIPPED = Clipping()
UNCLIPPED = Clipping(bound=math.inf)


def leading_fits(steps: int, T: int, offset: int) -> bool:
    """Tell whether a leading grid of so many steps ends within T timesteps."""
    return (steps - 1) * (T // steps) + offset < T
