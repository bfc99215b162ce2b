"""How many workers a traffic needs: `python -m bench.scale --jobs-per-s 20 --p95-s 2`.

It simulates fleets of more and more workers until the 95th percentile of the time from post to end
is as asked.
"""

from __future__ import annotations

import math
from random import Random
from typing import Annotated

import typer

from bench.lib.report import OUT, Out, Report
from bench.scale.simulation import Device, Overheads, SimulatedFleet, percentile, poisson
from worker.jobs.domain import SHARD_IMAGES, shard_count

# Jobs of the beginning, when the fleet is not busy yet, do not count.
_WARM_UP = 0.2
_FEWEST_JOBS = 200
_MOST_WORKERS = 4096
HEAD = ["workers", "load", "p50", "p95", "p99"]


def main(
    jobs_per_s: Annotated[float, typer.Option(min=0.001, help="Jobs that come a second")] = 20,
    count: Annotated[int, typer.Option(min=1, max=1024, help="Images of a job")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Steps of an image")] = 50,
    pace: Annotated[
        float, typer.Option(min=1, help="Image-steps/s of a worker, as `/readyz` shows them")
    ] = 25_000,
    p95_s: Annotated[float, typer.Option(min=0.001, help="Seconds that 95 % may take")] = 2,
    least_s: Annotated[float, typer.Option(min=0, help="Seconds of the smallest batch")] = 0.002,
    largest: Annotated[int, typer.Option(min=1, max=256, help="Images of the largest batch")] = 256,
    bulk: Annotated[float, typer.Option(min=0, max=1, help="Share of bulk jobs")] = 0,
    start_s: Annotated[
        float,
        typer.Option(
            min=0, help="Seconds from a post to its first step (bench.commands.fleet first-step)"
        ),
    ] = 0.02,
    worker_s: Annotated[
        float,
        typer.Option(
            min=0, help="Seconds of a worker for a shard (1 / jobs/s of bench.commands.fleet jobs)"
        ),
    ] = 0.005,
    server_s: Annotated[
        float,
        typer.Option(
            min=0, help="Seconds of the job store for a shard (bench.commands.fleet jobs)"
        ),
    ] = 0.001,
    for_s: Annotated[float, typer.Option(min=1, help="Seconds of traffic to simulate")] = 60,
    seed: Annotated[int, typer.Option(help="Of the arrivals")] = 0,
    out: Out = OUT,
) -> None:
    """Say how many workers the traffic needs, and how long its jobs then take."""
    report = Report(out, "scale", "cpu")
    device, overheads = Device(pace, least_s, largest), Overheads(start_s, worker_s, server_s)
    impossible = fault(jobs_per_s, count, steps, device, overheads, p95_s)
    if impossible:
        report.say(impossible)
        raise typer.Exit(1)
    needed = jobs_per_s * count * steps / pace
    jobs = max(_FEWEST_JOBS, math.ceil(jobs_per_s * for_s))
    rows = []
    # A queue grows for ever if the workers have no more to give than comes in.
    workers = math.floor(needed) + 1
    while workers <= _MOST_WORKERS:
        arrivals = poisson(jobs, jobs_per_s, count, steps, Random(seed), bulk)
        taken = SimulatedFleet([device] * workers, overheads, Random(seed)).run(arrivals)
        taken = taken[round(_WARM_UP * jobs) :]
        p50, p95, p99 = (percentile(taken, share) for share in (0.5, 0.95, 0.99))
        rows.append(
            [str(workers), f"{needed / workers:.0%}", *(f"{s:.3g} s" for s in (p50, p95, p99))]
        )
        if p95 <= p95_s:
            break
        # Each fleet is a tenth larger than the one before, or has one worker more.
        workers = max(workers + 1, round(1.1 * workers))
    report.table(HEAD, rows)
    is_enough = p95 <= p95_s
    verdict = "enough" if is_enough else "not enough"
    busy = store_share(jobs_per_s, count, overheads)
    report.say(f"Workers that are {verdict} for a p95 of {p95_s:g} s: {rows[-1][0]}.")
    report.say(f"The job store's core is {busy:.1%} busy.")
    raise typer.Exit(int(not is_enough))


def fault(
    jobs_per_s: float,
    count: int,
    steps: int,
    device: Device,
    overheads: Overheads,
    p95_s: float,
) -> str | None:
    """Say why no number of workers serves the traffic in time; None if some number may."""
    sizes = device.batch_sizes()
    alone_s = (
        overheads.start_s
        + steps * sizes.seconds[sizes.size_for(min(count, SHARD_IMAGES, device.largest))]
    )
    if alone_s > p95_s:
        return (
            f"An idle worker takes {alone_s:.3g} s for a job, more than the {p95_s:g} s asked for; "
            "use fewer steps, a faster device or fewer images a job."
        )
    busy = store_share(jobs_per_s, count, overheads)
    if busy >= 1:
        return (
            f"The job store's core would be {busy:.0%} busy; "
            "split the traffic between several services, each with a job store of its own."
        )
    return None


def store_share(jobs_per_s: float, count: int, overheads: Overheads) -> float:
    """Return the share of the job store's core that the traffic takes."""
    return jobs_per_s * shard_count(count) * overheads.server_s


if __name__ == "__main__":
    typer.run(main)
