"""Printing that goes on after the terminal has gone."""

from __future__ import annotations

from contextlib import suppress

import typer


def say(line: str) -> None:
    """Print a line. A closed terminal or pipe does not end the supervisor."""
    with suppress(OSError):
        typer.echo(line)
