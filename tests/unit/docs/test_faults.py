"""The table of faults: each has one row, with a test that shows it."""

from __future__ import annotations

import re

from tests.support.pages import ROOT

PAGE = (ROOT / "docs" / "reference" / "faults.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith("| fault |")
]


def test_each_fault_has_one_row() -> None:
    """A merge of two branches that change a row keeps both of them without a conflict."""
    faults = [row[0] for row in ROWS]
    assert faults
    assert sorted({fault for fault in faults if faults.count(fault) > 1}) == []


def test_each_fault_names_the_test_that_shows_it() -> None:
    assert [row[0] for row in ROWS if not re.search(r"`tests/[\w/.]+`", row[-1])] == []
