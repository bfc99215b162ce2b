"""Every relative link of every page leads somewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.pages import ROOT, anchors, links, pages


@pytest.mark.parametrize("page", pages(), ids=str)
def test_every_relative_link_leads_to_a_file_and_an_anchor(page: Path) -> None:
    relative = [
        link
        for link in links((ROOT / page).read_text())
        if not link.startswith(("http://", "https://", "mailto:"))
    ]
    assert [link for link in relative if not _leads_somewhere(page, link)] == []


def _leads_somewhere(page: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = (ROOT / page.parent / path).resolve() if path else ROOT / page
    if not target.is_relative_to(ROOT) or not target.exists():
        return False
    if target.is_dir():
        return page.parts[0] != "docs"  # GitHub shows folders, the site has none
    return not anchor or target.suffix != ".md" or anchor in anchors(target.read_text())


def test_anchors_are_those_of_github() -> None:
    text = "# A `POST /v1/jobs`, and more\n\n## Twice\n\n## Twice\n\n<a id='mine'></a>\n"
    assert anchors(text) == {"a-post-v1jobs-and-more", "twice", "twice-1", "mine"}


def test_links_are_those_of_text_pictures_and_html() -> None:
    table = "| |\n|---|\n| [h](i.md) |"
    text = f'[a](b.md#c) ![d](e%20f.png) <img src="g.svg">\n\n{table}\n\n```\n[j](k.md)\n```\n'
    assert links(text) == ["b.md#c", "e f.png", "g.svg", "i.md"]
