from __future__ import annotations

from typing import Any

import pytest

from app.jobs.defaults import recipe_with_defaults
from app.problems.problems import InvalidRequest
from app.schemas.jobs import JobRequest
from models.checkpoints.catalog import Card, Catalog, Defaults
from tests.support.cards import card_of
from worker.jobs.domain import MAX_SEED, Recipe


def recipe(*cards: Card, **request: Any) -> Recipe:
    catalog = Catalog({}, {card.name: card for card in cards})
    return recipe_with_defaults(JobRequest(**request), catalog)


def test_fields_left_out_come_from_the_card() -> None:
    defaults = Defaults(sampler="ddim", steps=20, variance="fixed_large", eta=0.25)
    asked = recipe(card_of("tiny", defaults=defaults), seed=1)
    assert asked == Recipe("tiny", "ab" * 32, "ddim", 20, "fixed_small", 0.25, 1)


@pytest.mark.parametrize(
    ("sampler", "variance", "eta"),
    [("ddpm", "fixed_large", 0.0), ("ddim", "fixed_small", 0.25), ("dpmpp_2m", "fixed_small", 0.0)],
)
def test_a_default_that_the_sampler_does_not_use_is_not_in_the_recipe(
    sampler: str, variance: str, eta: float
) -> None:
    defaults = Defaults(steps=20, variance="fixed_large", eta=0.25)
    asked = recipe(card_of("tiny", defaults=defaults), sampler=sampler)
    assert (asked.variance, asked.eta) == (variance, eta)


def test_the_analytic_variance_is_named_by_its_estimate_and_others_are_not() -> None:
    card = card_of("tiny", residual_variance="cd" * 32)
    asked = recipe(card, sampler="ddpm", variance="analytic", seed=1)
    assert asked == Recipe("tiny", "ab" * 32, "ddpm", 100, "analytic", 0.0, 1, "cd" * 32)
    assert recipe(card).residual_variance == ""


def test_an_eta_of_minus_zero_is_zero() -> None:
    assert str(recipe(card_of("tiny"), sampler="ddim", eta=-0.0).eta) == "0.0"


def test_a_request_wins_over_the_card_even_with_zeros() -> None:
    card = card_of("tiny", defaults=Defaults(sampler="ddim", steps=20, eta=0.25))
    asked = recipe(card, sampler="ddim", eta=0.0, seed=0, steps=1)
    assert (asked.eta, asked.seed, asked.steps) == (0.0, 0, 1)


def test_the_default_model_is_the_marked_one() -> None:
    assert recipe(card_of("marked"), card_of("other", default=False)).model == "marked"


def test_seeds_are_drawn_from_their_whole_range() -> None:
    seeds = {recipe(card_of("tiny")).seed for _ in range(50)}
    assert len(seeds) == 50
    assert max(seeds) > MAX_SEED / 2
    assert all(0 <= seed <= MAX_SEED for seed in seeds)


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        ({"model": "nobody"}, "model='nobody' is not known; use one of: tiny."),
        ({"steps": 51}, "steps=51 is more than the 50 that 'tiny' was trained with; use 1 to 50."),
        ({"sampler": "dpmpp_2m"}, "sampler=dpmpp_2m is not one of 'tiny'; use one of: ddpm, ddim."),
        (
            {"sampler": "ddpm", "variance": "analytic"},
            "variance=analytic needs an estimate that 'tiny' lacks; use fixed_small or "
            "fixed_large, or have the operator make one with `ddpm models variance`.",
        ),
    ],
)
def test_a_request_that_the_card_does_not_allow_is_refused(
    request_: dict[str, Any], text: str
) -> None:
    card = card_of(
        "tiny",
        schedule=card_of("tiny").schedule.model_copy(update={"T": 50}),
        defaults=Defaults(steps=50),
        samplers=("ddpm", "ddim"),
    )
    with pytest.raises(InvalidRequest) as error:
        recipe(card, **request_)
    assert error.value.detail == text
