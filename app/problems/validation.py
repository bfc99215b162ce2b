"""Pydantic's errors in our words: fact, value, remedy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from app.problems.problems import BrokenBody, InvalidRequest, Problem
from app.schemas.problems import InvalidField

_TEXTS = {
    "missing": "{field} is missing; send it.",
    "extra_forbidden": "{field}={value} is not a known field; remove it, or see /docs for the fields there are.",
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
    "string_pattern_mismatch": "{field}={value} does not match {pattern}; send what an earlier answer gave.",
    "model_attributes_type": "{field}={value} is not an object; send a JSON object such as {{}}.",
    "value_error": "{error}.",
}
_NESTED: dict[type, str] = {list: "[...]", dict: "{...}"}


def invalid(field: str, value: object, detail: str) -> InvalidRequest:
    """An InvalidRequest about one field, for what only a model's card can tell."""
    return InvalidRequest([InvalidField(field=field, value=shorten(value), detail=detail)])


def problem_of(errors: Sequence[Mapping[str, Any]]) -> Problem:
    broken = [error for error in errors if error["type"] == "json_invalid"]
    if broken:
        return BrokenBody(
            f"the body is not JSON: {broken[0]['ctx']['error']} at character {broken[0]['loc'][-1]}; correct it there."
        )
    return InvalidRequest(
        [_explain(error) for error in errors[:10]]
    )  # a body of 64 KiB holds thousands


def _explain(error: Mapping[str, Any]) -> InvalidField:
    source, *path = map(str, error["loc"])
    field, value = shorten(".".join(path) or source, quote=False), shorten(error["input"])
    text = _TEXTS.get(error["type"], "{field}={value} is refused: {msg}; correct it.")
    detail = text.format(
        **error.get("ctx", {}) | {"field": field, "value": value, "msg": error["msg"]}
    )
    return InvalidField(field=field, value=value, detail=detail)


def shorten(value: object, size: int = 80, *, quote: bool = True) -> str:
    """As JSON and in ASCII, so that no lone surrogate breaks the answer; what nests is not followed, so that no depth does."""
    text = _NESTED.get(type(value)) or json.dumps(value, default=repr)
    text = text if quote else text.strip('"')
    return text if len(text) <= size else text[:size] + "..."
