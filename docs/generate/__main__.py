"""Write the pages of docs/reference/ that are made from the code: all, or those that are named."""

from __future__ import annotations

import sys
from pathlib import Path

from docs.generate.command_line import command_page
from docs.generate.http_api import http_page
from docs.generate.models import models_page
from docs.generate.training_recipe import recipe_page

REFERENCE = Path(__file__).parents[1] / "reference"
PAGES = {
    "http-api.md": http_page,
    "cli.md": command_page,
    "models.md": models_page,
    "training-recipe.md": recipe_page,
}


def main() -> None:
    """Write pages of `PAGES` anew: those named on the command line, such as `models`, or all."""
    REFERENCE.mkdir(exist_ok=True)
    named = {f"{name}.md" for name in sys.argv[1:]}
    for name in sorted(named) or PAGES:
        (REFERENCE / name).write_text(PAGES[name]())


if __name__ == "__main__":
    main()
