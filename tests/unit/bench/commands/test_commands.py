"""The benchmarks as commands."""

from __future__ import annotations

import importlib

import pytest
import typer
from typer.testing import CliRunner


@pytest.mark.parametrize(
    "module",
    [
        *(
            f"commands.{name}"
            for name in ("engine", "exact", "latency", "peers", "pollers", "fetch", "fleet")
        ),
        "commands.quality",
        "hostile.__main__",
    ],
)
def test_a_benchmark_describes_itself_and_its_options(module: str) -> None:
    app = typer.Typer(add_completion=False)
    app.command()(importlib.import_module(f"bench.{module}").main)
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0, result.output
    assert "--out" in result.output
