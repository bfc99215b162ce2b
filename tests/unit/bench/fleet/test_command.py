"""What `python -m bench.commands.fleet` refuses, and how it compares two checkouts."""

from __future__ import annotations

from pathlib import Path

import typer
from typer.testing import CliRunner, Result

from bench.commands import fleet
from bench.lib.report import Report


def run(*options: str) -> Result:
    app = typer.Typer()
    app.command()(fleet.main)
    return CliRunner().invoke(app, options)


def test_a_length_that_is_no_number_is_named(tmp_path: Path) -> None:
    result = run("length", "--shards", "10,many", "--out", str(tmp_path))
    assert result.exit_code == 2
    assert "'many' is no number of shards" in result.output


def test_a_checkout_that_is_not_there_is_refused(tmp_path: Path) -> None:
    result = run("jobs", "--against", str(tmp_path / "nowhere"), "--out", str(tmp_path))
    assert result.exit_code == 2
    assert "does not exist" in result.output


def test_the_table_has_medians_and_the_ratios_of_rounds(tmp_path: Path) -> None:
    ours = [{"jobs/s": 20.0}, {"jobs/s": 30.0}, {"jobs/s": 60.0}]
    theirs = [{"jobs/s": 10.0}, {"jobs/s": 10.0}, {"jobs/s": 10.0}]
    fleet.tabulate(Report(tmp_path, "fleet", "cpu"), {"this one": ours, "the other": theirs})
    row = "| jobs/s | 30 (20 to 60) | 10 (10 to 10) | 3.00  | 2.00 to 6.00 |"
    assert row in (tmp_path / "fleet.md").read_text()
