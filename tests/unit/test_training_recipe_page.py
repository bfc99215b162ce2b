"""docs/reference/training-recipe.md against the recipe that it describes."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models.train.recipe import TrainingRecipe

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "training-recipe.md").read_text()
ROWS = {
    cells[1].strip(" `"): [cell.strip() for cell in cells[2:]]
    for cells in (line.split("|") for line in PAGE.splitlines() if line.startswith("| `"))
}
SCHEMA = TrainingRecipe.model_json_schema()


def keys(
    schema: dict[str, Any], prefix: str = "", given: dict[str, Any] | None = None
) -> Iterator[tuple[str, str, Any]]:
    """Return name, type and default of every key.

    `given` is what a section holds if the recipe leaves it out.
    """
    for name, field in schema["properties"].items():
        default = (given or {}).get(name, field.get("default"))
        kind = next(
            (option for option in field.get("anyOf", []) if option.get("type") != "null"), field
        )
        if "$ref" in kind:
            yield from keys(
                SCHEMA["$defs"][kind["$ref"].rpartition("/")[2]], f"{prefix}{name}.", default
            )
        else:
            yield prefix + name, kind["type"], default


KEYS = {name: (kind, default) for name, kind, default in keys(SCHEMA)}


def test_the_page_names_every_key_of_a_recipe_and_no_other() -> None:
    assert set(ROWS) == set(KEYS)


@pytest.mark.parametrize("name", KEYS)
def test_the_page_has_the_type_of_a_key(name: str) -> None:
    assert ROWS[name][0].split()[0] == {"array": "list"}.get(KEYS[name][0], KEYS[name][0])


@pytest.mark.parametrize("name", KEYS)
def test_the_page_has_the_default_of_a_key(name: str) -> None:
    default, cell = KEYS[name][1], ROWS[name][1]
    if default is None:
        assert cell == "required"
    else:
        assert tomllib.loads(f"value = {cell.strip('`')}")["value"] == default
