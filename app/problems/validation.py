"""Rewrites pydantic's errors as fact, value and remedy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from app.problems.problems import BrokenBody, InvalidRequest, Problem
from app.schemas.problems import InvalidField

_TEXTS = {
    "missing": "{field} is missing; send it.",
    "extra_forbidden": (
        "{field}={value} is not a known field; remove it, or see /docs for the fields there are."
    ),
    "int_type": "{field}={value} is not an integer; send digits without quotes or a fraction.",
    "int_parsing": "{field}={value} is not an integer; send digits only.",
    "int_from_float": "{field}={value} is not an integer; send digits only.",
    "int_parsing_size": "{field}={value} is too long for a number; send fewer digits.",
    "float_type": "{field}={value} is not a number; send digits without quotes.",
    "float_parsing": "{field}={value} is not a number; send digits.",
    "finite_number": "{field}={value} is not a finite number; send one that is.",
    "string_type": "{field}={value} is not a string; send one in quotes.",
    "greater_than_equal": "{field}={value} is less than {ge}; use {ge} or more.",
    "less_than_equal": "{field}={value} is more than {le}; use {le} or less.",
    "literal_error": "{field}={value} is not known; use one of: {expected}.",
    "enum": "{field}={value} is not known; use one of: {expected}.",
    "string_pattern_mismatch": (
        "{field}={value} does not match {pattern}; send what an earlier answer gave."
    ),
    "model_attributes_type": "{field}={value} is not an object; send a JSON object such as {{}}.",
    "value_error": "{error}.",
}
_NESTED: dict[type, str] = {list: "[...]", dict: "{...}"}
# Errors that one answer names. A body of 64 KiB can have thousands.
_MAX_ERRORS = 10


def invalid(field: str, value: object, detail: str) -> InvalidRequest:
    """Return an InvalidRequest about one field, for what a schema alone cannot check."""
    return InvalidRequest([InvalidField(field=field, value=shorten(value), detail=detail)])


def validation_problem(errors: Sequence[Mapping[str, Any]]) -> Problem:
    """Return the problem that pydantic's `errors` are, of a body that is no JSON or of fields."""
    for error in errors:
        if error["type"] == "json_invalid":
            return BrokenBody(
                f"the body is not JSON: {error['ctx']['error']} at character {error['loc'][-1]}; "
                "correct it there."
            )
    return InvalidRequest([_explain(error) for error in errors[:_MAX_ERRORS]])


def _explain(error: Mapping[str, Any]) -> InvalidField:
    source, *path = map(str, error["loc"])
    field = shorten(".".join(path) or source, quote=False)
    value = shorten(error["input"])
    text = _TEXTS.get(error["type"], "{field}={value} is refused: {msg}; correct it.")
    facts = error.get("ctx", {}) | {"field": field, "value": value, "msg": error["msg"]}
    return InvalidField(field=field, value=value, detail=text.format(**facts))


def shorten(value: object, size: int = 80, *, quote: bool = True) -> str:
    """Return `value` as JSON, no more than `size` characters of it.

    It is ASCII, so that no lone surrogate breaks the answer. Lists and objects are not followed,
    so that no depth of nesting does.
    """
    text = _NESTED.get(type(value)) or json.dumps(value, default=repr)
    text = text if quote else text.strip('"')
    return text if len(text) <= size else text[:size] + "..."
