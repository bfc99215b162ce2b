"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(help="Name from `ddpm models`, or the folder of a model")]
BatchSize = Annotated[int, typer.Option(min=1, help="Pictures at once; the result is the same")]
NoiseSeed = Annotated[int, typer.Option(min=0, max=2**53 - 1, help="Of the noise")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1; auto takes a GPU where there is one")]
SkipBroken = Annotated[
    bool, typer.Option("--skip-broken", help="Leave out pictures that cannot be read")
]
