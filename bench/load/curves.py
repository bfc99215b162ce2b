"""Latency against load, for anything that serves arrivals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from bench.lib.report import Report
from bench.load.arrivals import SIZES, Arrival, poisson
from bench.load.open_loop import ServedLoad

LOADS = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
PERCENTILES = (50, 95, 99)
PERCENTILE_NAMES = "p50 / p95 / p99 (jobs)"

Serve = Callable[[Sequence[Arrival]], ServedLoad]


@dataclass(frozen=True, slots=True)
class Point:
    """The latencies of a size of job at one load.

    Attributes:
        load: Share of the capacity that is asked for.
        server: Name of what served it.
        image_steps_per_s: Throughput of all sizes together.
        size: Name of the size.
        jobs: How many there were.
        percentiles: Seconds, for each of PERCENTILES.
    """

    load: float
    server: str
    image_steps_per_s: float
    size: str
    jobs: int
    percentiles: tuple[float, ...]

    @property
    def cell(self) -> str:
        """Cell of the table."""
        return " / ".join(f"{seconds:.2f}" for seconds in self.percentiles) + f" s ({self.jobs})"


def measure_capacity(serve: Serve) -> float:
    """Return the image-steps per second with always enough to do.

    They are measured over two large jobs, after one that warms up.
    """
    large = Arrival(0.0, SIZES[-1])
    serve([large])
    served = serve([large, large])
    return served.image_steps / served.seconds


def measure(servers: Mapping[str, Serve], jobs: int, images_per_s: float) -> Iterator[Point]:
    """Yield the points of every load, server and size.

    All servers get the same arrivals at a load, one server after the other.

    Args:
        servers: What serves, by name.
        jobs: Jobs at each load.
        images_per_s: Images that are asked for a second at load 1.
    """
    for load, name in product(LOADS, servers):
        arrivals = poisson(jobs, load * images_per_s, seed=1)
        yield from _points(load, name, arrivals, servers[name](arrivals))


def _points(
    load: float, name: str, arrivals: Sequence[Arrival], served: ServedLoad
) -> Iterator[Point]:
    rate = served.image_steps / served.seconds
    for size in SIZES:
        latencies = [
            latency
            for arrival, latency in zip(arrivals, served.latencies, strict=True)
            if arrival.size is size
        ]
        percentiles = tuple(float(seconds) for seconds in np.percentile(latencies, PERCENTILES))
        yield Point(load, name, rate, size.name, len(latencies), percentiles)


def tabulate(report: Report, points: Sequence[Point]) -> None:
    """Report latencies with the servers side by side, then their throughput."""
    found = {(point.load, point.size, point.server): point for point in points}
    loads, sizes, servers = (list(dict.fromkeys(key)) for key in zip(*found, strict=True))
    latencies = []
    for load, size in product(loads, sizes):
        cells = [found[load, size, server].cell for server in servers]
        latencies.append([f"{load:.1f}", size, *cells])
    head = ["load", "size", *(f"{server}: {PERCENTILE_NAMES}" for server in servers)]
    report.table(head, latencies)
    rates = []
    for load in loads:
        cells = [f"{found[load, sizes[0], server].image_steps_per_s:.0f}" for server in servers]
        rates.append([f"{load:.1f}", *cells])
    report.table(["load", *(f"{server}: image-steps/s" for server in servers)], rates)


def draw(report: Report, points: Sequence[Point]) -> None:
    """Draw p95 against load: a colour for each size, a line style for each server."""
    servers = list(dict.fromkeys(point.server for point in points))
    styles = list(zip(servers, ("-o", "--x"), strict=False))
    with report.plot() as axes:
        for (server, style), (number, size) in product(styles, enumerate(SIZES)):
            line = [point for point in points if (point.server, point.size) == (server, size.name)]
            loads = [point.load for point in line]
            p95 = [point.percentiles[PERCENTILES.index(95)] for point in line]
            axes.plot(loads, p95, style, color=f"C{number}", label=f"{size.name}: {server}")
        axes.set(xlabel="load, of capacity", ylabel="p95 of latency, s", yscale="log")
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
