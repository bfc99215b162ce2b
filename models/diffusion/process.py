"""The process that a network was trained on, and how its publisher samples from it."""

from __future__ import annotations

from dataclasses import dataclass

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
from models.diffusion.plans import Plan, compile_plan
from models.diffusion.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Process:
    """A network's process, of which a job's options make a plan.

    Attributes:
        schedule: The forward process.
        prediction: What the network's output estimates.
        clipping: What is done to x_0_hat.
        learned_variance: What the network returns beside its estimate. None: nothing.
        spacing: How timesteps are chosen.
        offset: The first timestep of the spacing `leading`.
    """

    schedule: Schedule
    prediction: Prediction = "epsilon"
    clipping: Clipping = CLIPPED
    learned_variance: LearnedVariance | None = None
    spacing: Spacing = "linspace"
    offset: int = 0

    def plan(
        self,
        steps: int,
        sampler: Sampler = "ddpm",
        *,
        variance: Variance = "fixed_small",
        eta: float = 0.0,
        residual_variance: Tensor | None = None,
    ) -> Plan:
        """Compile a job's options to a plan, as `compile_plan` does.

        Raises:
            ValueError: There is no such plan.
        """
        return compile_plan(
            self.schedule,
            steps,
            sampler,
            variance=variance,
            eta=eta,
            prediction=self.prediction,
            clip=self.clipping,
            residual_variance=residual_variance,
            learned=self.learned_variance,
            spacing=self.spacing,
            offset=self.offset,
        )
