"""Options that a job or a card may name: samplers, reverse variances, network outputs."""

from __future__ import annotations

from typing import Literal

Sampler = Literal["ddpm", "ddim", "dpmpp_2m"]
SAMPLERS: tuple[Sampler, ...] = ("ddpm", "ddim", "dpmpp_2m")

FixedVariance = Literal["fixed_small", "fixed_large"]
Variance = Literal[FixedVariance, "analytic"]

Prediction = Literal["epsilon", "sample", "v_prediction"]
