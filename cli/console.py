"""Printing that goes on when nobody listens any more."""

from __future__ import annotations

from contextlib import suppress

import typer


def say(line: str) -> None:
    """A closed terminal or pipe must not end the supervisor in the midst of its work."""
    with suppress(OSError):
        typer.echo(line)
