"""From what was asked for to what will be done: the model's defaults filled in, its limits held."""

from __future__ import annotations

import secrets

from app.problems.problems import unknown_model
from app.problems.validation import invalid
from app.schemas.jobs import JobRequest
from models.checkpoints.catalog import Card, Catalog
from models.diffusion.options import Sampler, Variance
from worker.jobs.domain import MAX_SEED, Recipe


def recipe_with_defaults(request: JobRequest, catalog: Catalog) -> Recipe:
    """Raises InvalidRequest for what no model, or not this one, can do."""
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
        raise invalid(
            "sampler",
            name,
            f"sampler={name} is not one of {card.name!r}; use one of: {', '.join(card.samplers)}.",
        )
    return name or card.defaults.sampler


def _variance(variance: Variance | None, sampler: Sampler, card: Card) -> Variance:
    """Where the sampler uses none, a fixed one: a card's new default must not change the bytes of a picture."""
    if variance == "analytic" and not card.residual_variance:
        text = (
            f"variance=analytic needs an estimate that {card.name!r} lacks; use fixed_small or fixed_large, or have the operator "
            "make one with `ddpm models variance`."
        )
        raise invalid("variance", variance, text)
    return variance or card.defaults.variance if sampler == "ddpm" else "fixed_small"


def _eta(eta: float | None, sampler: Sampler, card: Card) -> float:
    """Fixed where the sampler uses none, as `_variance`."""
    asked = card.defaults.eta if eta is None else eta
    return (
        asked + 0.0 if sampler == "ddim" else 0.0
    )  # -0.0 is 0.0, but would be another text in the recipe


def _steps(steps: int | None, card: Card) -> int:
    longest = card.schedule.T
    if steps and steps > longest:
        text = f"steps={steps} is more than the {longest} that {card.name!r} was trained with; use 1 to {longest}."
        raise invalid("steps", steps, text)
    return steps or card.defaults.steps
