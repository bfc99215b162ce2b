"""How much of the bare network's speed the engine keeps, and of the machine's: `python -m bench.commands.engine`.

For each precision and batch size, in one run and in turn: the network alone on a batch; the engine on as many chains; their rows
and noise alone. The peak is a product of two large matrices in the same precision, measured in the same turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
import typer
from torch import Tensor

from bench.lib.machine import default_device
from bench.lib.model import DEFAULT, Model, engine_on, load
from bench.lib.report import OUT, Out, Report
from models.diffusion.noise import normal
from models.diffusion.plans import compile_plan
from worker.backends.served_network import precisions
from worker.calibration.calibrate import sizes_on
from worker.engine.chain import ChainRequest
from worker.engine.cuda_graphs import CudaRecorder
from worker.engine.step import WIDTH
from worker.jobs.domain import Precision
from worker.process.loaded_model import LoadedModel

ROUNDS, BURST = 9, 16
_SIDE = {"cpu": 1024, "cuda": 8192}  # of the matrices


@dataclass(frozen=True, slots=True)
class EngineRow:
    """Seconds of one step of `size` chains: the network alone, the engine, the rows alone; and the peak in flop/s."""

    precision: Precision
    size: int
    network_s: float
    engine_s: float
    rows_s: float
    peak: float
    gflop: float

    @property
    def per_s(self) -> float:
        return self.size / self.engine_s

    @property
    def cells(self) -> list[str]:
        of_network, rows = (
            f"{self.network_s / self.engine_s:.1%}",
            f"{self.rows_s / self.engine_s:.1%}",
        )
        of_peak = f"{self.per_s * self.gflop * 1e9 / self.peak:.0%}"
        return [
            self.precision,
            str(self.size),
            f"{self.size / self.network_s:.0f}",
            f"{self.per_s:.0f}",
            of_network,
            rows,
            of_peak,
        ]


def main(
    model: Model = DEFAULT,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1")] = default_device(),
    precision: Annotated[
        Precision | None, typer.Option(help="One only; default: all that a worker would consider")
    ] = None,
    out: Out = OUT,
) -> None:
    """Image-steps a second of every batch size that agrees to the bit, in every precision that the device has."""
    report = Report(out, "engine", device)
    kinds = [precision] if precision else precisions(torch.device(device))
    largest = sizes_on(torch.device(device))[-1]
    rows = [row for kind in kinds for row in measure(load(model, device, largest, kind))]
    head = [
        "precision",
        "batch",
        "network/s",
        "engine/s",
        "engine / network",
        "rows and noise / step",
        "of the matmul peak",
    ]
    report.say(
        f"{rows[0].gflop:g} GFLOP an image-step; medians of {ROUNDS} turns of {BURST} steps.\n"
    )
    report.table(head, [row.cells for row in rows])
    plot(report, rows)


def measure(model: LoadedModel) -> Iterator[EngineRow]:
    model.calibration.use()
    for size in model.calibration.batch_sizes:
        runs = [_network(model, size), _engine(model, size), _rows(model, size), _product(model)]
        times = [
            [_burst(model, run) for run in runs] for _ in range(ROUNDS + 1)
        ]  # the first warms up
        network_s, engine_s, rows_s, product_s = (
            statistics.median(column) for column in zip(*times[1:], strict=True)
        )
        peak = 2 * _side(model) ** 3 / product_s
        yield EngineRow(
            model.precision,
            size,
            network_s,
            engine_s,
            rows_s,
            peak,
            model.card.gflop_per_image_step,
        )


def _network(model: LoadedModel, size: int) -> Callable[[], object]:
    pool = model.engine.pool
    index = torch.arange(size, device=pool.device)
    x = normal(index, index, index, pool.shape)
    return _recorded(pool.device, lambda: pool.network(x, index))


def _engine(model: LoadedModel, size: int) -> Callable[[], object]:
    engine = engine_on(model, [size])
    plan = compile_plan(model.schedule, model.schedule.T)
    engine.submit([ChainRequest(i, "bench", plan, 1, i) for i in range(size)])
    return engine.step


def _rows(model: LoadedModel, size: int) -> Callable[[], object]:
    pool = model.engine.pool
    columns = torch.ones(WIDTH, size, dtype=torch.float64, device=pool.device)
    columns[0] = torch.arange(size)
    x, x_0_hat, out = torch.randn(3, size, *pool.shape, device=pool.device)
    return _recorded(pool.device, lambda: pool.advance(columns, x, x_0_hat, out))


def _recorded(device: torch.device, run: Callable[[], object]) -> Callable[[], object]:
    """On CUDA as a graph, as the engine's steps are: launched one by one, small operations take longer to launch than to do."""
    if device.type == "cpu":
        return run

    def recorded(_: Tensor) -> None:
        run()

    with torch.inference_mode():
        return CudaRecorder(device)(recorded, torch.empty(0, device=device))


def _product(model: LoadedModel) -> Callable[[], object]:
    a = torch.randn(_side(model), _side(model), device=model.engine.pool.device).to(_dtype(model))
    return lambda: a @ a


def _dtype(model: LoadedModel) -> torch.dtype:
    return torch.bfloat16 if model.precision.startswith("bf16") else torch.float32


def _side(model: LoadedModel) -> int:
    return _SIDE[model.engine.pool.device.type]


@torch.inference_mode()
def _burst(model: LoadedModel, run: Callable[[], object]) -> float:
    """Seconds of one run, over a few in a row."""
    model.engine.pool.wait()
    start = time.perf_counter()
    for _ in range(BURST):
        run()
    model.engine.pool.wait()
    return (time.perf_counter() - start) / BURST


def plot(report: Report, rows: list[EngineRow]) -> None:
    with report.plot() as axes:
        for precision in dict.fromkeys(row.precision for row in rows):
            own = [row for row in rows if row.precision == precision]
            axes.plot(
                [row.size for row in own],
                [row.size / row.network_s for row in own],
                "--",
                label=f"{precision}, network alone",
            )
            axes.plot(
                [row.size for row in own],
                [row.per_s for row in own],
                "o-",
                label=f"{precision}, engine",
            )
        axes.set_xscale("log", base=2)
        axes.set_xlabel("batch size")
        axes.set_ylabel("image-steps/s")
        axes.set_ylim(bottom=0)
        axes.legend()


if __name__ == "__main__":
    typer.run(main)
