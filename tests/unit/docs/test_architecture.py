"""What the documentation says of the tree, against the tree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.pages import PACKAGES, ROOT, pages

DOCS = ROOT / "docs"
MAP = (DOCS / "explanation" / "architecture.md").read_text().partition("## The folders")[2]
_PATH = re.compile(r"`((?:app|worker|models|cli|bench|tests|docs|docker)/[\w./-]*)`")
# What these pages name is, in part, what there was.
_HISTORY = {"CHANGELOG.md", "0020-names.md"}


def _packages() -> set[str]:
    return {
        str(init.parent.relative_to(ROOT))
        for top in PACKAGES
        for init in (ROOT / top).rglob("__init__.py")
    }


def test_the_map_names_every_package_once() -> None:
    named = re.findall(r"(?m)^\| `([\w/]+)/` \|", MAP)
    assert sorted(set(named)) == sorted(named)
    assert _packages() - set(named) == set()


def test_the_map_names_no_folder_that_is_not_there() -> None:
    named = re.findall(r"(?m)^\| `([\w/]+)/` \|", MAP)
    assert [name for name in named if not (ROOT / name).is_dir()] == []


def test_the_drawing_names_no_layer_that_is_not_there() -> None:
    layers = re.findall(
        r'font-weight="600"[^>]*>([\w.]+)<', (DOCS / "images" / "layers.svg").read_text()
    )
    assert layers
    assert [layer for layer in layers if layer.replace(".", "/") not in _packages()] == []


@pytest.mark.parametrize("page", [page for page in pages() if page.name not in _HISTORY], ids=str)
def test_a_page_names_no_file_that_is_not_there(page: Path) -> None:
    named = set(_PATH.findall((ROOT / page).read_text()))
    assert sorted(name for name in named if not (ROOT / name).exists()) == []
