"""Sphinx's configuration for `make docs`: every asset is local, and the search needs no server."""

from __future__ import annotations

from typing import Any

project = "ddpm-service"
copyright = "the ddpm-service authors, Apache-2.0"
extensions = ["myst_parser"]
exclude_patterns = ["generate"]
nitpicky = True
smartquotes = False  # `--option` is no dash

myst_enable_extensions = ["alert"]  # as GitHub renders `> [!NOTE]`
myst_heading_anchors = 6

html_theme = "pydata_sphinx_theme"
html_title = project
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "navbar_align": "left",
    "header_links_before_dropdown": 5,
    "show_nav_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_end": [],
}

# The order of the sections, and the pages that come first in each. The others follow by name.
SECTIONS = {
    "tutorial": ["first-pictures", "train-a-model"],
    "how-to": [
        "run-with-docker",
        "run-on-kubernetes",
        "follow-a-job",
        "receive-webhooks",
        "operate",
        "secure-the-api",
    ],
    "reference": ["http-api", "cli", "models", "settings", "events"],
    "explanation": ["architecture", "scale"],
    "decisions": [],
}


def setup(app: Any) -> None:
    """Connect `add_order`, so that the pages stay plain Markdown. Sphinx calls this."""
    app.connect("source-read", add_order)


def add_order(app: Any, page: str, source: list[str]) -> None:
    """List the sections below the landing page, and the pages of a section below its own page."""
    section = page.removesuffix("/index")
    if page == "index":
        source[0] += _toctree([f"{name}/index" for name in SECTIONS], "hidden")
    elif page.endswith("/index") and section in SECTIONS:
        found = {
            name.removeprefix(f"{section}/")
            for name in app.env.found_docs
            if name.startswith(f"{section}/")
        }
        first = [name for name in SECTIONS[section] if name in found]
        source[0] += _toctree([*first, *sorted(found.difference(first, ["index"]))], "maxdepth: 1")


def _toctree(pages: list[str], option: str) -> str:
    return "\n".join(
        [
            "",
            "```{toctree}",
            f":{option}" if ":" in option else f":{option}:",
            "",
            *pages,
            "```",
            "",
        ]
    )
