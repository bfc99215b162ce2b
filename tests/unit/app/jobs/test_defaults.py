from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.jobs.defaults import recipe_with_defaults
from app.problems.problems import InvalidRequest
from app.schemas.jobs import JobRequest
from models.checkpoints.catalog import Card, Catalog, ClassesCard, Defaults, Timesteps
from tests.support.cards import card_of
from worker.jobs.domain import MAX_COUNT, MAX_INDEX, MAX_SEED, MAX_START, Recipe


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
    defaults = Defaults(steps=400, variance="fixed_large", eta=0.25)
    asked = recipe(card_of("tiny", defaults=defaults), sampler=sampler)
    assert (asked.variance, asked.eta) == (variance, eta)


@pytest.mark.parametrize(
    ("published", "steps", "taken"),
    [
        ("fixed_large", 1000, "fixed_large"),
        ("fixed_large", 400, "fixed_large"),
        ("fixed_large", 399, "fixed_small"),
        ("fixed_large", 10, "fixed_small"),
        ("learned", 10, "learned"),
    ],
)
def test_fixed_large_is_nobodys_default_at_few_steps(
    published: str, steps: int, taken: str
) -> None:
    """Its Fréchet distance at 10 steps is three times that of fixed_small."""
    defaults = Defaults(steps=1000, variance=published)
    card = card_of("tiny", defaults=defaults, learned_variance=True)
    assert recipe(card, steps=steps).variance == taken
    assert recipe(card, sampler="ddpm", variance="fixed_large").variance == "fixed_large"


def test_steps_that_the_spacing_does_not_have_are_refused_before_the_job_is_queued() -> None:
    timesteps = Timesteps(spacing="leading", offset=1)
    card = card_of("tiny", timesteps=timesteps, defaults=Defaults(steps=999))
    assert recipe(card, steps=500).steps == 500
    with pytest.raises(InvalidRequest, match="spacing is leading from 1 on; use fewer, or 999"):
        recipe(card, steps=1000)


def test_the_analytic_variance_is_named_by_its_estimate_and_others_are_not() -> None:
    card = card_of("tiny", residual_variance="cd" * 32)
    asked = recipe(card, sampler="ddpm", variance="analytic", seed=1)
    assert asked == Recipe("tiny", "ab" * 32, "ddpm", 100, "analytic", 0.0, 1, "cd" * 32)
    assert recipe(card).residual_variance == ""


@pytest.mark.parametrize("index", [0, 5, MAX_START, MAX_START + 1, MAX_INDEX])
@pytest.mark.parametrize(
    "options",
    [
        {"sampler": "ddpm", "variance": "fixed_large"},
        {"sampler": "ddpm", "variance": "analytic"},
        {"sampler": "ddim", "eta": 0.25},
        {"sampler": "dpmpp_2m"},
        {"sampler": "dpmpp_2m", "label": 2, "guidance": 2.5},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_the_request_in_a_picture_asks_for_that_picture(
    options: dict[str, Any], index: int
) -> None:
    classes = ClassesCard(count=3, null=0) if "label" in options else None
    card = card_of("tiny", residual_variance="cd" * 32, classes=classes)
    made_by = recipe(card, seed=7, steps=12, **options)
    body = JobRequest.model_validate(json.loads(json.dumps(made_by.request(index))))
    assert recipe(card, **body.model_dump()) == made_by
    assert body.start + body.count - 1 == index


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
        (
            {"sampler": "ddpm", "variance": "learned"},
            "variance=learned needs a network that returns one, and 'tiny' does not; use "
            "fixed_small or fixed_large.",
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


@given(
    seed=st.integers(0, MAX_SEED),
    start=st.integers(0, MAX_START),
    count=st.integers(1, MAX_COUNT),
    classes=st.integers(1, 10**6),
    skipped=st.integers(0, MAX_COUNT),
)
def test_a_drawn_label_is_the_same_whatever_count_and_start_are(
    seed: int, start: int, count: int, classes: int, skipped: int
) -> None:
    card = card_of("tiny", classes=ClassesCard(count=classes))
    whole = recipe(card, seed=seed, start=start, count=count).labels_of(count)
    first = min(start + skipped % count, MAX_START)
    part = recipe(card, seed=seed, start=first, count=1).labels_of(1)
    assert part == whole[first - start : first - start + 1]
    assert all(label is not None and 0 <= label < classes for label in whole)


def test_drawn_labels_are_those_that_the_reference_describes() -> None:
    card = card_of("tiny", classes=ClassesCard(count=10))
    assert recipe(card, seed=7, count=8).labels == "2,6,1,8,7,2,0,5"
