"""The time to get the images of a job, one by one and as an archive.

`python -m bench.commands.fetch` measures milliseconds. Both ways take turns, so that a machine that
slows down slows both. One service, with its worker, serves all.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from bench.lib.machine import default_device
from bench.lib.model import DEFAULT, Model
from bench.lib.report import OUT, Out, Report
from bench.systems.service import data_folder, service

COUNTS = (1, 16, 64, 1024)
# One step is enough, because images of noise are as large as any.
STEPS = 1


def main(
    rounds: Annotated[int, typer.Option(min=1, help="How often each is measured")] = 9,
    model: Model = DEFAULT,
    device: Annotated[
        str, typer.Option(help="Of the worker: cpu, cuda, cuda:1")
    ] = default_device(),
    out: Out = OUT,
) -> None:
    """Measure milliseconds from the first request to the last image in the client's hands."""
    report = Report(out, "fetch", "cpu")
    rows = []
    with data_folder(out) as folder, service(folder, model, device, "auto") as client:
        for count in COUNTS:
            job = client.finished(client.post(count, STEPS))
            times = [
                (_ms(client.pngs_singly, job), _ms(client.pngs_in_archive, job))
                for _ in range(rounds)
            ]
            singly, archived = zip(*times, strict=True)
            rows.append(
                [str(count), _shown(singly), _shown(archived), _shown([s / a for s, a in times])]
            )
    report.table(["images", "one by one, ms", "archive, ms", "ratio"], rows)


def _ms(get: Callable[[dict[str, Any]], object], job: dict[str, Any]) -> float:
    began = time.perf_counter()
    get(job)
    return 1e3 * (time.perf_counter() - began)


def _shown(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1f}"


if __name__ == "__main__":
    typer.run(main)
