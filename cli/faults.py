"""Errors that a person can mend.

They are one line with fact, value and remedy, exit code 1 and no traceback.
"""

from __future__ import annotations

import typer
from typer.core import TyperGroup


class Fault(Exception):
    """An expected error; its text is all that is shown."""


class FaultGroup(TyperGroup):
    """Commands whose Faults end the program with their text on stderr."""

    # The context is Typer's, where click's group has its own.
    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        """Run the command.

        Raises:
            typer.Exit: It failed with a Fault, whose text has been printed.
        """
        try:
            return super().invoke(ctx)
        except Fault as fault:
            typer.echo(f"ddpm: {fault}", err=True)
            raise typer.Exit(1) from None
