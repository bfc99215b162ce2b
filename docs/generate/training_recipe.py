"""docs/reference/training-recipe.md: its text is written by hand, its tables are the code's."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

from docs.generate.markdown import table
from models.train.recipe import recipe_keys
from models.train.recipe_keys import meaning, toml, type_of

_PAGE = Path(__file__).parents[1] / "reference" / "training-recipe.md"
_HEAD = ("key", "type", "default", "meaning")


def recipe_page() -> str:
    """Return the page with the table of each section made anew, between its marks."""
    text = _PAGE.read_text()
    for section, names in groupby(recipe_keys(), key=lambda name: name.partition(".")[0]):
        begin, end = f"<!-- keys of {section} -->", "<!-- end -->"
        above, opened, rest = text.partition(begin)
        _, closed, below = rest.partition(end)
        if not opened or not closed:
            raise ValueError(f"{_PAGE.name} has no place for the keys of {section}; make one")
        text = f"{above}{begin}\n\n{_table(list(names))}\n\n{end}{below}"
    return text


def _table(names: list[str]) -> str:
    keys = recipe_keys()
    rows = [(f"`{name}`", type_of(name), _default(keys[name]), meaning(name)) for name in names]
    return table(_HEAD, rows)


def _default(key: dict[str, Any]) -> str:
    if key["required"]:
        return "required"
    return "none" if key["default"] is None else f"`{toml(key['default'])}`"
