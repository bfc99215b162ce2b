"""Numbers in paths and queries: what HTTP clients mean by one."""

from __future__ import annotations

from typing import Literal

from pydantic import BeforeValidator
from pydantic_core import PydanticKnownError


def _plain(kind: Literal["int_parsing", "float_parsing"]) -> BeforeValidator:
    def check(value: object) -> object:
        """Refuse `1_0`, which is ten to Python and to nobody else."""
        if isinstance(value, str) and "_" in value:
            raise PydanticKnownError(kind)
        return value

    return BeforeValidator(check)


# They stand last in an Annotated: constraints behind them would leave the OpenAPI document.
PLAIN_INT = _plain("int_parsing")
PLAIN_FLOAT = _plain("float_parsing")
