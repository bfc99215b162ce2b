"""Write docs/reference/http-api.md and docs/reference/cli.md."""

from __future__ import annotations

from pathlib import Path

from docs.generate.command_line import command_page
from docs.generate.http_api import http_page

REFERENCE = Path(__file__).parents[1] / "reference"
PAGES = {"http-api.md": http_page, "cli.md": command_page}


def main() -> None:
    """Write every page of `PAGES` anew."""
    REFERENCE.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (REFERENCE / name).write_text(page())


if __name__ == "__main__":
    main()
