"""Same seed, same bytes: `python -m bench.commands.exact`.

Whatever is around a chain while it runs, no byte of its image may differ from the image made alone.
The command exits with 1 if one does.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Annotated

import torch
import typer

from bench.lib.machine import default_device
from bench.lib.model import DEFAULT, Model
from bench.lib.report import OUT, Out, Report
from bench.lib.ways import alone, ways
from bench.lib.work import Images, Work
from worker.backends.served_network import precisions
from worker.jobs.domain import Precision

# Images of each way in the plot.
SHOWN = 12


@dataclass(frozen=True, slots=True)
class ExactRow:
    """A way, compared with the reference.

    Attributes:
        precision: What the network computes in.
        way: Description of the way.
        images: Images that it made.
        differing: Bytes that differ from the reference.
        levels: Largest difference of a byte.
        seconds: How long it took.
    """

    precision: Precision
    way: str
    images: Images
    differing: int
    levels: int
    seconds: float

    @property
    def cells(self) -> list[str]:
        """Cells of the table's row."""
        counts = map(str, (len(self.images), self.differing, self.levels))
        return [self.precision, self.way, *counts, f"{self.seconds:.0f} s"]


def main(
    images: Annotated[int, typer.Option(min=1, help="Images in each row")] = 512,
    steps: Annotated[
        int, typer.Option(min=2, help="Steps of each image, one more or less for some")
    ] = 10,
    precision: Annotated[
        Precision | None, typer.Option(help="One only; default: all that a worker would consider")
    ] = None,
    model: Model = DEFAULT,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1")] = default_device(),
    out: Out = OUT,
) -> None:
    """Make the same images in every way that a service may make them, and count differing bytes."""
    report = Report(out, "exact", device)
    report.say(f"{images} images a row, {steps} steps, all samplers, against each image alone.\n")
    rows = []
    for kind in [precision] if precision else precisions(torch.device(device)):
        for row in compare(Work(model, device, kind, images, steps)):
            report.progress(f"{row.precision}, {row.way}: {row.differing} bytes differ")
            rows.append(row)
    head = ["precision", "way", "images", "differing bytes", "levels at most", "took"]
    report.table(head, [row.cells for row in rows])
    plot(report, rows)
    raise typer.Exit(int(any(row.differing for row in rows)))


def compare(work: Work) -> Iterator[ExactRow]:
    """Yield a row for every way, compared with each image made alone."""
    model = work.model()
    reference = alone(model, work, random.Random(0))
    for name, way in ways(model, torch.get_num_threads()).items():
        start = perf_counter()
        images = way(model, work, random.Random(1))
        yield ExactRow(
            work.precision, name, images, *difference(images, reference), perf_counter() - start
        )


def difference(images: Images, reference: Images) -> tuple[int, int]:
    """Return how many bytes differ, and by how many levels at most."""
    assert images.keys() == reference.keys(), "every way makes every image once"
    apart = torch.stack([(images[i].int() - reference[i].int()).abs() for i in reference])
    return int(apart.count_nonzero()), int(apart.max())


def plot(report: Report, rows: Sequence[ExactRow]) -> None:
    """Draw the first images of each way, a line each; all lines of one precision show the same."""
    lines = [torch.cat([row.images[i] for i in sorted(row.images)[:SHOWN]], dim=2) for row in rows]
    height = lines[0].shape[1]
    with report.plot(10, 0.5 * len(rows)) as axes:
        axes.imshow(torch.cat(lines, dim=1).permute(1, 2, 0), cmap="gray", vmin=0, vmax=255)
        axes.set_yticks(
            [height * (k + 0.5) for k in range(len(rows))],
            [f"{row.way}, {row.precision}" for row in rows],
        )
        axes.set_xticks([])


if __name__ == "__main__":
    typer.run(main)
