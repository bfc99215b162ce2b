"""`python -m bench.scale` answers how many workers a traffic needs, or why none are enough."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from bench.scale.__main__ import main


def scale(out: Path, options: str) -> Result:
    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, [*options.split(), "--out", str(out)])


def test_the_answer_is_the_first_fleet_that_is_fast_enough(tmp_path: Path) -> None:
    result = scale(tmp_path, "--jobs-per-s 20 --steps 50 --pace 1000 --p95-s 3 --for-s 20")
    assert result.exit_code == 0, result.output
    rows = [line for line in result.output.splitlines() if line.startswith("| ")][2:]
    *too_slow, enough = [float(row.split("|")[4].removesuffix(" s ")) for row in rows]
    assert enough <= 3
    assert all(p95_s > 3 for p95_s in too_slow)
    workers = int(rows[-1].split("|")[1])
    assert workers >= 4
    assert f"are enough for a p95 of 3 s: {workers}." in result.output


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--steps 1000 --p95-s 1", "An idle worker takes 2.02 s for a job"),
        ("--jobs-per-s 2000 --server-s 0.001", "The job store's core would be 200% busy"),
    ],
)
def test_a_traffic_that_no_fleet_serves_is_refused_with_the_reason(
    tmp_path: Path, options: str, reason: str
) -> None:
    result = scale(tmp_path, options)
    assert result.exit_code == 1
    assert reason in result.output
