"""The latency of jobs under load, in seconds: `python -m bench.commands.latency`.

Jobs of three sizes arrive at random, at 0.2 to 1.2 of what the engine can do. They are served by
our rules, and first come first served. `--service` sends them over HTTP instead. `--beside-bulk`
measures what one big job and small ones cost each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated

import typer

from bench.lib.machine import default_device
from bench.lib.model import DEFAULT, Model, engine_on, load
from bench.lib.report import OUT, Out, Report
from bench.load import beside_bulk, curves, over_http
from bench.load.curves import Serve
from bench.load.open_loop import Request, as_the_service, first_come_first_served, serve
from bench.systems.service import PrecisionOption, data_folder, service
from worker.process.loaded_model import LoadedModel


def main(
    jobs: Annotated[
        int, typer.Option(min=20, help="Jobs at each load; beside a big one, small jobs")
    ] = 120,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each image")] = 50,
    model: Model = DEFAULT,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1")] = default_device(),
    precision: Annotated[
        PrecisionOption, typer.Option(help="auto takes what the worker would take")
    ] = "auto",
    over_http_: Annotated[
        bool, typer.Option("--service", help="The same arrivals over HTTP, in real time")
    ] = False,
    bulk: Annotated[
        bool, typer.Option("--beside-bulk", help="One big job and small ones, over HTTP")
    ] = False,
    every_s: Annotated[
        float, typer.Option(min=0, help="Beside a big job, a small one comes this often on average")
    ] = 1.0,
    alone_s: Annotated[
        float,
        typer.Option(
            min=1, help="The big job is watched by itself this long, before them and after"
        ),
    ] = 20,
    out: Out = OUT,
) -> None:
    """Measure latency against load, or what a big job and small ones cost each other."""
    if not (bulk or over_http_):
        loaded = load(model, device, 1024, precision)
        servers = in_process(loaded, steps)
        load_curves(servers, loaded.precision, jobs, steps, Report(out, "latency", device))
        return
    with data_folder(out) as folder, service(folder, model, device, precision) as client:
        if bulk:
            report = Report(out, "beside-bulk", device)
            beside_bulk.run(client, steps, jobs, every_s, alone_s, report)
        else:
            servers = {"service": partial(over_http.serve, client, steps=steps)}
            report = Report(out, "latency-service", device)
            load_curves(servers, client.precision(), jobs, steps, report)


def in_process(model: LoadedModel, steps: int) -> dict[str, Serve]:
    """Return servers for both orders of service, on one model.

    The scheduler decides in both what comes next; they differ in what it knows of a job.
    """
    plan = model.plan("ddpm", steps, "fixed_small", 0.0)

    def server(request: Request) -> Serve:
        batch_sizes = model.calibration.batch_sizes
        return lambda arrivals: serve(engine_on(model, batch_sizes), arrivals, plan, request)

    return {
        "ours": server(as_the_service),
        "first come first served": server(first_come_first_served),
    }


def load_curves(
    servers: Mapping[str, Serve], precision: str, jobs: int, steps: int, report: Report
) -> None:
    """Measure the capacity of the first server, then the latency of all at each load."""
    capacity = curves.measure_capacity(next(iter(servers.values())))
    report.say(
        f"{precision}; capacity {capacity:.0f} image-steps/s; "
        f"{jobs} jobs of {steps} steps at each load.\n"
    )
    points = []
    for point in curves.measure(servers, jobs, capacity / steps):
        report.progress(f"load {point.load:.1f}, {point.server}, {point.size}: {point.cell}")
        points.append(point)
    curves.tabulate(report, points)
    curves.draw(report, points)


if __name__ == "__main__":
    typer.run(main)
