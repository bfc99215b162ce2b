"""Latency against load, for anything that serves arrivals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from bench.arrivals import SIZES, Arrival, poisson
from bench.open_loop import Served
from bench.report import Report

LOADS = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
PERCENTILES = (50, 95, 99)

Serve = Callable[[Sequence[Arrival]], Served]


@dataclass(frozen=True, slots=True)
class Point:
    """One size of job at one load: how many there were, and the percentiles of their latencies in seconds."""

    load: float
    server: str
    image_steps_per_s: float
    size: str
    jobs: int
    percentiles: tuple[float, ...]


def measured_capacity(serve: Serve) -> float:
    """Image-steps per second with always enough to do: two large jobs, after one that warms up."""
    large = Arrival(0.0, SIZES[-1])
    serve([large])
    served = serve([large, large])
    return served.image_steps / served.seconds


def measure(servers: Mapping[str, Serve], jobs: int, images_per_s: float) -> Iterator[Point]:
    """`images_per_s` is load 1. At each load all servers get the same arrivals, one server after the other."""
    for load, name in product(LOADS, servers):
        arrivals = poisson(jobs, load * images_per_s, seed=1)
        yield from _points(load, name, arrivals, servers[name](arrivals))


def _points(load: float, name: str, arrivals: Sequence[Arrival], served: Served) -> Iterator[Point]:
    rate = served.image_steps / served.seconds
    for size in SIZES:
        latencies = [latency for arrival, latency in zip(arrivals, served.latencies, strict=True) if arrival.size is size]
        percentiles = tuple(float(seconds) for seconds in np.percentile(latencies, PERCENTILES))
        yield Point(load, name, rate, size.name, len(latencies), percentiles)


def tabulate(report: Report, points: Sequence[Point]) -> None:
    head = ["load", "served", "image-steps/s", "size", "jobs", *(f"p{percent}" for percent in PERCENTILES)]
    report.table(head, [_cells(point) for point in points])


def _cells(point: Point) -> list[str]:
    seconds = [f"{value:.2f} s" for value in point.percentiles]
    return [f"{point.load:.1f}", point.server, f"{point.image_steps_per_s:.0f}", point.size, str(point.jobs), *seconds]


def draw(report: Report, points: Sequence[Point]) -> None:
    """p95 against load: a colour for each size, a line style for each server."""
    servers = list(dict.fromkeys(point.server for point in points))
    with report.plot() as axes:
        for (server, style), (number, size) in product(zip(servers, ("-o", "--x"), strict=False), enumerate(SIZES)):
            line = [point for point in points if (point.server, point.size) == (server, size.name)]
            p95 = [point.percentiles[PERCENTILES.index(95)] for point in line]
            axes.plot([point.load for point in line], p95, style, color=f"C{number}", label=f"{size.name}: {server}")
        axes.set(xlabel="load, of capacity", ylabel="p95 of latency, s", yscale="log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
