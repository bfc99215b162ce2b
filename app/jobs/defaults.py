"""Completes a request: fills in the model's defaults and checks its limits."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from itertools import islice

from app.problems.problems import unknown_model
from app.problems.validation import invalid, shorten
from app.schemas.jobs import JobRequest
from models.checkpoints.catalog import Card, Catalog, ClassesCard
from models.diffusion.options import Sampler, Variance
from worker.jobs.domain import MAX_SEED, NO_GUIDANCE, Recipe, drawn_label, labels_text

# Of names of classes, when one is wrong.
_MOST_COMPARED = 100
_LONGEST_COMPARED = 60


def recipe_with_defaults(request: JobRequest, catalog: Catalog) -> Recipe:
    """Return what will be done: the request, with the model's defaults where it says nothing.

    Raises:
        InvalidRequest: the model is unknown, or cannot do what is asked of it.
    """
    card = _card(request.model, catalog)
    sampler = _sampler(request.sampler, card)
    steps = _steps(request.steps, card)
    variance = _variance(request.variance, sampler, steps, card)
    seed = secrets.randbelow(MAX_SEED + 1) if request.seed is None else request.seed
    return Recipe(
        model=card.name,
        weights=card.sha256,
        sampler=sampler,
        steps=steps,
        variance=variance,
        eta=_eta(request.eta, sampler, card),
        seed=seed,
        residual_variance=(card.residual_variance or "") if variance == "analytic" else "",
        labels=labels_text(_labels(request, card, seed)),
        guidance=_guidance(request.guidance, card),
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


def _variance(variance: Variance | None, sampler: Sampler, steps: int, card: Card) -> Variance:
    """Return the reverse variance, a constant one where the sampler uses none.

    An image's bytes include its recipe, and a card's new default must not change them.
    """
    if variance == "analytic" and not card.residual_variance:
        detail = (
            f"variance=analytic needs an estimate that {card.name!r} lacks; use fixed_small or "
            "fixed_large, or have the operator make one with `ddpm models variance`."
        )
        raise invalid("variance", variance, detail)
    if variance == "learned" and not card.learned_variance:
        detail = (
            f"variance=learned needs a network that returns one, and {card.name!r} does not; use "
            "fixed_small or fixed_large."
        )
        raise invalid("variance", variance, detail)
    if sampler != "ddpm":
        return "fixed_small"
    return variance or card.default_variance(steps)


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
    if steps and not card.takes_steps(steps):
        detail = (
            f"steps={steps} do not fit the timesteps of {card.name!r}, whose spacing is "
            f"{card.timesteps.spacing} from {card.timesteps.offset} on; use fewer, or "
            f"{card.defaults.steps}."
        )
        raise invalid("steps", steps, detail)
    return steps or card.defaults.steps


def _labels(request: JobRequest, card: Card, seed: int) -> list[int]:
    """Return the number of each image's class, drawn where none is named; none without classes."""
    classes = card.classes
    if classes is None:
        for field, value in (("label", request.label), ("labels", request.labels)):
            if value is not None:
                detail = f"{card.name!r} has no classes; leave {field} out, or name another model."
                raise invalid(field, value, detail)
        return []
    if request.labels is not None:
        numbers = _numbers_by_name(classes)
        return [
            _class_of(label, f"labels.{place}", card, classes, numbers)
            for place, label in enumerate(request.labels)
        ]
    if request.label is not None:
        return [_class_of(request.label, "label", card, classes, _numbers_by_name(classes))]
    indices = range(request.start, request.start + request.count)
    return [drawn_label(seed, index, classes.count) for index in indices]


def _numbers_by_name(classes: ClassesCard) -> dict[str, int]:
    return {name: number for number, name in enumerate(classes.names or ())}


def _class_of(
    label: int | str, field: str, card: Card, classes: ClassesCard, numbers: Mapping[str, int]
) -> int:
    """Find the number of a class. Digits in quotes are a number unless they are a name."""
    if isinstance(label, str) and label in numbers:
        return numbers[label]
    if isinstance(label, str) and re.fullmatch(r"[0-9]{1,7}", label):
        label = int(label)
    if isinstance(label, int):
        if not 0 <= label < classes.count:
            detail = (
                f"{field}={shorten(label)} is none of the {classes.count} classes of"
                f" {card.name!r}; use 0 to {classes.count - 1}."
            )
            raise invalid(field, label, detail)
        return label
    known = f"use a number from 0 to {classes.count - 1}"
    if numbers:
        near = _nearest(label, numbers) or [*numbers][:3]
        known = f"use one such as {', '.join(map(repr, near))}, or a number below {classes.count}"
    detail = f"{field}={shorten(label)} is no class of {card.name!r}; {known}."
    raise invalid(field, label, detail)


def _nearest(label: str, names: Iterable[str]) -> list[str]:
    """Find the names that a wrong one may have meant, among some that begin with its letter.

    To compare it with all names of a thousand classes would take a tenth of a second.
    """
    first = label[:1].casefold()
    alike = islice((name for name in names if name[:1].casefold() == first), _MOST_COMPARED)
    return get_close_matches(label[:_LONGEST_COMPARED], alike, n=3, cutoff=0.5)


def _guidance(guidance: float | None, card: Card) -> float:
    """Return the weight of guidance; 1 is none."""
    if guidance is None or guidance == NO_GUIDANCE:
        return NO_GUIDANCE
    if card.classes is None or card.classes.null is None:
        lacks = "has no classes" if card.classes is None else "lacks a null class"
        detail = (
            f"guidance={guidance:g} needs a row of the class embedding that means no class, and "
            f"{card.name!r} {lacks}; leave it out, or have the operator add the model with "
            "`--null-class`."
        )
        raise invalid("guidance", guidance, detail)
    # The sum turns -0.0 into 0.0.
    return guidance + 0.0
