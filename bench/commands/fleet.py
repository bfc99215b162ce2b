"""Rates, shares and waits of a fleet: `python -m bench.commands.fleet`. Linux only.

Everything is real (HTTP, admission, a Valkey that syncs every write, worker processes) but the
networks, which only wait. So the figures are of what is around a network.

`--against CHECKOUT` measures another commit's service in turn with this one's, and gives ratios.
Both run by this Python, so it compiles nothing for the other one: install it there once for its
compiled functions.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from bench.fleet import costs, curve, rates, shares, waits
from bench.fleet.rates import Figures
from bench.fleet.server_costs import script_names
from bench.fleet.stub_service import ROOT, StubService, stub_service
from bench.lib.report import OUT, Out, Report

Case = Callable[[StubService], Figures]


class Cases(StrEnum):
    """What can be measured; the report explains each by its figures."""

    JOBS = "jobs"
    SIZES = "sizes"
    PACES = "paces"
    OWNERS = "owners"
    FIRST_STEP = "first-step"
    LATE = "late"
    MANY = "many"
    SCRIPTS = "scripts"
    LENGTH = "length"
    BEHIND = "behind"
    REFILLED = "refilled"
    CURVE = "curve"


def main(
    cases: Annotated[
        list[Cases] | None, typer.Argument(help="What to measure; all if none")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Jobs of a backlog of one-image jobs")] = 900,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each image")] = 4,
    images: Annotated[int, typer.Option(min=64, help="Images, where sizes are compared")] = 1024,
    pace: Annotated[
        float, typer.Option(min=1, help="Image-steps/s of a worker, where shares are measured")
    ] = 400,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long shares are watched")] = 20,
    backlog_s: Annotated[
        float, typer.Option(min=1, help="Seconds of work that wait when a worker comes late")
    ] = 600,
    workers: Annotated[
        int, typer.Option(min=1, max=32, help="Workers that are compared with one")
    ] = 8,
    shards: Annotated[
        str, typer.Option(help="Lengths of the queue, between commas, for the costs of a take")
    ] = "10,1000,100000",
    start_s: Annotated[
        float, typer.Option(min=0, help="Seconds to a first step, for the simulated curve")
    ] = 0.02,
    rounds: Annotated[int, typer.Option(min=1, help="Times that each case is measured")] = 3,
    against: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Another checkout, to be measured in turn with this one",
        ),
    ] = None,
    out: Out = OUT,
) -> None:
    """Measure what is around a network: rates, shares, waits and costs of a fleet."""
    checkouts = {"this one": ROOT, **({"the other": against} if against else {})}
    lengths = parse_lengths(shards)
    report = Report(out, "fleet", "cpu")
    with ExitStack() as stack:
        sides = {
            name: stack.enter_context(stub_service(out, checkout))
            for name, checkout in checkouts.items()
        }
        names = {name: script_names(checkout) for name, checkout in checkouts.items()}
        all_names = {sha1: script for side in names.values() for sha1, script in side.items()}
        every: dict[Cases, Case] = {
            Cases.JOBS: partial(rates.jobs, count=jobs, steps=steps),
            Cases.SIZES: partial(rates.sizes, images=images, steps=50),
            Cases.PACES: partial(paces, pace=pace, seconds=seconds, steps=steps),
            Cases.OWNERS: partial(shares.by_owner, count=jobs, steps=steps),
            Cases.FIRST_STEP: partial(waits.first_step, times=40, pace=pace, steps=steps),
            Cases.LATE: partial(
                shares.late, pace=pace / 4, backlog_s=backlog_s, seconds=seconds, steps=50
            ),
            Cases.MANY: partial(
                rates.many,
                workers=workers,
                pace=pace / 4,
                jobs_each=max(1, jobs // workers),
                steps=steps,
            ),
            Cases.SCRIPTS: partial(costs.scripts, names=all_names, jobs=jobs, steps=steps),
            Cases.LENGTH: partial(by_length, names=all_names, lengths=lengths, steps=steps),
            Cases.BEHIND: partial(waits.behind, backlog=jobs, steps=steps, refilled=False),
            Cases.REFILLED: partial(waits.behind, backlog=jobs, steps=steps, refilled=True),
            Cases.CURVE: partial(
                curve.latencies,
                workers=2,
                pace=pace,
                jobs=max(20, jobs // 9),
                steps=50,
                start_s=start_s,
            ),
        }
        for case in cases or Cases:
            report.say(f"## {case}\n")
            tabulate(report, measure(report, every[case], sides, rounds))


def parse_lengths(text: str) -> list[int]:
    """Read lengths of a queue, between commas.

    Raises:
        typer.BadParameter: One is no whole number of shards.
    """
    words = [word.strip() for word in text.split(",")]
    if wrong := [word for word in words if not word.isascii() or not word.isdigit()]:
        raise typer.BadParameter(
            f"{wrong[0]!r} is no number of shards; write whole numbers between commas, as 10,1000",
            param_hint="--shards",
        )
    return [int(word) for word in words]


def measure(
    report: Report, case: Case, sides: Mapping[str, StubService], rounds: int
) -> dict[str, list[Figures]]:
    """Measure a case on all sides in turn, so many times."""
    measured: dict[str, list[Figures]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, side in sides.items():
            report.progress(f"round {number + 1} of {rounds}, {name}")
            measured[name].append(case(side))
    return measured


def tabulate(report: Report, measured: Mapping[str, Sequence[Figures]]) -> None:
    """Add a table of medians and ranges, and of the ratios of the two sides."""
    has_other = len(measured) > 1
    head = ["", *measured, *(["ratio", "its range"] if has_other else [])]
    rows = []
    names = dict.fromkeys(name for rounds in measured.values() for name in rounds[0])
    for name in names:
        sides = [
            [figures[name] for figures in rounds if name in figures] for rounds in measured.values()
        ]
        row = [name, *map(_median_and_range, sides)]
        if has_other:
            row += _ratio(*sides)
        rows.append(row)
    report.table(head, rows)


def paces(service: StubService, pace: float, seconds: float, steps: int) -> Figures:
    """Measure the shares of an equal worker, and of one with a third of the pace."""
    parts = [1, 1 / 3]
    found = [shares.by_pace(service, pace, part, seconds, steps) for part in parts]
    return {name: value for figures in found for name, value in figures.items()}


def by_length(
    service: StubService, names: Mapping[str, str], lengths: Sequence[int], steps: int
) -> Figures:
    """Measure the costs of single operations behind queues of all lengths."""
    found = [costs.by_length(service, names, length, steps) for length in lengths]
    return {name: value for figures in found for name, value in figures.items()}


def _median_and_range(values: Sequence[float]) -> str:
    if not values:
        return ""
    median = f"{statistics.median(values):.3g}"
    return median if len(values) == 1 else f"{median} ({min(values):.3g} to {max(values):.3g})"


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> list[str]:
    ratios = [a / b for a, b in zip(ours, theirs, strict=False) if b]
    if not ratios:
        return ["", ""]
    return [f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}"]


if __name__ == "__main__":
    typer.run(main)
