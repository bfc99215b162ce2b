"""Tables and plots as files."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from bench.lib.report import Report


def test_a_table_is_the_same_on_the_screen_and_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Report(tmp_path / "new", "speed", "cpu").table(
        ["batch", "rate"], [["2", "240"], ["16", "1,000"]]
    )
    text = (tmp_path / "new" / "speed.md").read_text()
    assert capsys.readouterr().out == text
    assert text.splitlines()[-5:-1] == [
        "| batch | rate  |",
        "| ----- | ----- |",
        "| 2     | 240   |",
        "| 16    | 1,000 |",
    ]


def test_a_report_begins_with_the_machine_and_forgets_the_last_run(tmp_path: Path) -> None:
    Report(tmp_path, "speed", "cpu").say("old")
    Report(tmp_path, "speed", "cpu")
    (line, _) = (tmp_path / "speed.md").read_text().splitlines()
    assert "torch" in line
    assert "cores" in line


def test_a_plot_is_a_png_next_to_the_table(tmp_path: Path) -> None:
    with Report(tmp_path, "speed", "cpu").plot() as axes:
        axes.plot([1, 2], [3, 4])
    with Image.open(tmp_path / "speed.png") as picture:
        assert picture.format == "PNG"
