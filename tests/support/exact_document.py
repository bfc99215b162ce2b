"""The OpenAPI document with what one service cannot say in types.

Clients made from the document are to fit every service, so it names no models, and no field there
depends on another. Tests that hold the service to its document add what this service accepts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from models.checkpoints.catalog import Card


def exact(
    document: Mapping[str, Any], cards: Mapping[str, Card], default: str, *, keyed: bool
) -> dict[str, Any]:
    """Return the document of a service that has these models and sends no webhooks.

    Args:
        document: What every service serves.
        cards: The models, by name.
        default: Name of the one that a job gets that names none.
        keyed: Whether the service has keys.
    """
    made = deepcopy(dict(document))
    request = made["components"]["schemas"]["JobRequest"]
    fields = request["properties"]
    fields["model"]["anyOf"][0]["enum"] = sorted(cards)
    fields["steps"]["anyOf"][0]["maximum"] = max(card.schedule.T for card in cards.values())
    fields["webhook"] = {"type": "null"}
    if not any(card.classes for card in cards.values()):
        fields |= {name: {"type": "null"} for name in ("label", "labels", "guidance")}
    estimated = [name for name, card in cards.items() if card.residual_variance]
    learned = [name for name, card in cards.items() if card.learned_variance]
    request["allOf"] = [
        _only_with("eta", "ddim"),
        _only_with("variance", "ddpm"),
        _only_of("analytic", estimated, default),
        _only_of("learned", learned, default),
    ]
    # It is of an event's data, and not of the stream.
    stream = made["paths"]["/v1/jobs/{job_id}/events"]["get"]["responses"]["200"]
    del stream["content"]["text/event-stream"]["schema"]
    if keyed:
        _require_keys(made)
    return made


def _only_with(option: str, sampler: str) -> dict[str, Any]:
    """Return that an option comes with the name of its sampler."""
    named = {"required": ["sampler"], "properties": {"sampler": {"const": sampler}}}
    given = {"required": [option], "properties": {option: {"not": {"type": "null"}}}}
    return {"if": given, "then": named}


def _only_of(variance: str, able: Sequence[str], default: str) -> dict[str, Any]:
    """Return that a variance is one of the models that are able to have it."""
    asked = {"required": ["variance"], "properties": {"variance": {"const": variance}}}
    if default in able:
        return {"if": asked, "then": {"properties": {"model": {"enum": [*able, None]}}}}
    named = {"required": ["model"], "properties": {"model": {"enum": list(able)}}}
    return {"if": asked, "then": named if able else False}


def _require_keys(document: dict[str, Any]) -> None:
    for operations in document["paths"].values():
        for operation in operations.values():
            if "security" in operation:
                operation["security"].remove({})
