"""README.md against the tree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = (ROOT / "README.md").read_text().partition("## Files")[2].partition("\n## ")[0]


@pytest.mark.parametrize("package", ["app", "worker", "models"])
def test_the_map_of_files_names_every_module_and_no_other(package: str) -> None:
    block = re.search(rf"(?m)^    {package}/.*\n((?:      .*\n)*)", FILES)
    assert block
    there = {path.name for path in (ROOT / package).glob("*.py") if not path.name.startswith("__")}
    assert set(re.findall(r"(\w+\.py)\b", block[1])) == there
