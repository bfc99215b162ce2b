"""The report of a benchmark: on the screen and in `<folder>/<name>.md`, with a plot next to it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.lib.machine import machine

Out = Annotated[Path, typer.Option(help="Folder of the table and the plot")]
OUT = Path("runs/bench")


class Report:
    """A report that begins with the machine.

    Every line is printed and written at once, so that a benchmark that is cut short leaves the
    beginning of its report.
    """

    def __init__(self, folder: Path, name: str, device: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._stem = folder / name
        self._stem.with_suffix(".md").write_text("")
        self.say(f"{machine(device)}.\n")

    def say(self, line: str) -> None:
        """Add a line to the report."""
        print(line, flush=True)
        with self._stem.with_suffix(".md").open("a") as file:
            file.write(f"{line}\n")

    def progress(self, line: str) -> None:
        """Print a line for whoever waits; it is no part of the report."""
        print(line, file=sys.stderr, flush=True)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Add a Markdown table, its columns padded so that it reads well in a terminal too."""
        widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
        lines = [
            _line(head, widths),
            _line(["-" * width for width in widths], widths),
            *(_line(row, widths) for row in rows),
        ]
        self.say("\n".join([*lines, ""]))

    @contextmanager
    def plot(self, width: float = 7, height: float = 4) -> Iterator[Any]:
        """Yield axes to draw on, and save them as `<folder>/<name>.png` at the end."""
        from matplotlib.figure import Figure

        figure = Figure((width, height))
        yield figure.add_subplot()
        figure.savefig(self._stem.with_suffix(".png"), dpi=120, bbox_inches="tight")
        print(f"{self._stem}.md and {self._stem}.png", flush=True)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return f"| {' | '.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))} |"
