"""Completes a request: fills in the model's defaults and checks its limits."""

from __future__ import annotations

import secrets

from app.problems.problems import unknown_model
from app.problems.validation import invalid
from app.schemas.jobs import JobRequest
from models.checkpoints.catalog import Card, Catalog
from models.diffusion.options import Sampler, Variance
from worker.jobs.domain import MAX_SEED, Recipe


def recipe_with_defaults(request: JobRequest, catalog: Catalog) -> Recipe:
    """Return what will be done: the request, with the model's defaults where it says nothing.

    Raises:
        InvalidRequest: the model is unknown, or cannot do what is asked of it.
    """
    card = _card(request.model, catalog)
    sampler = _sampler(request.sampler, card)
    variance = _variance(request.variance, sampler, card)
    return Recipe(
        model=card.name,
        weights=card.sha256,
        sampler=sampler,
        steps=_steps(request.steps, card),
        variance=variance,
        eta=_eta(request.eta, sampler, card),
        seed=secrets.randbelow(MAX_SEED + 1) if request.seed is None else request.seed,
        residual_variance=(card.residual_variance or "") if variance == "analytic" else "",
    )


def _card(name: str | None, catalog: Catalog) -> Card:
    if name is None:
        return catalog.default
    if name not in catalog:
        raise invalid("model", name, unknown_model(name, catalog))
    return catalog[name]


def _sampler(name: Sampler | None, card: Card) -> Sampler:
    if name and name not in card.samplers:
        detail = (
            f"sampler={name} is not one of {card.name!r}; use one of: {', '.join(card.samplers)}."
        )
        raise invalid("sampler", name, detail)
    return name or card.defaults.sampler


def _variance(variance: Variance | None, sampler: Sampler, card: Card) -> Variance:
    """Return the reverse variance, a constant one where the sampler uses none.

    An image's bytes include its recipe, and a card's new default must not change them.
    """
    if variance == "analytic" and not card.residual_variance:
        detail = (
            f"variance=analytic needs an estimate that {card.name!r} lacks; use fixed_small or "
            "fixed_large, or have the operator make one with `ddpm models variance`."
        )
        raise invalid("variance", variance, detail)
    if sampler != "ddpm":
        return "fixed_small"
    return variance or card.defaults.variance


def _eta(eta: float | None, sampler: Sampler, card: Card) -> float:
    """Return the noise of DDIM, a constant where the sampler uses none, as in `_variance`."""
    if sampler != "ddim":
        return 0.0
    asked = card.defaults.eta if eta is None else eta
    # The sum turns -0.0 into 0.0, which is the same number but another text in the recipe.
    return asked + 0.0


def _steps(steps: int | None, card: Card) -> int:
    longest = card.schedule.T
    if steps and steps > longest:
        detail = (
            f"steps={steps} is more than the {longest} that {card.name!r} was trained with; "
            f"use 1 to {longest}."
        )
        raise invalid("steps", steps, detail)
    return steps or card.defaults.steps
