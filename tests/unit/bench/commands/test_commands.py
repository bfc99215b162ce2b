"""The benchmarks as commands."""

from __future__ import annotations

import importlib

import pytest
import typer
from typer.testing import CliRunner


@pytest.mark.parametrize(
    "name", ["engine", "exact", "latency", "peers", "pollers", "fetch", "quality"]
)
def test_a_benchmark_describes_itself_and_its_options(name: str) -> None:
    app = typer.Typer(add_completion=False)
    app.command()(importlib.import_module(f"bench.commands.{name}").main)
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0, result.output
    assert "--out" in result.output
