"""Every benchmark is a command."""

from __future__ import annotations

import importlib

import pytest
import typer
from typer.testing import CliRunner


@pytest.mark.parametrize(
    "name", ["engine", "exact", "latency", "peers", "pollers", "fetch", "quality"]
)
def test_a_benchmark_says_what_it_does_and_takes(name: str):
    app = typer.Typer(add_completion=False)
    app.command()(importlib.import_module(f"bench.{name}").main)
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0, result.output
    assert "--out" in result.output
