"""The engine's speed, as a share of the bare network's and of the machine's.

`python -m bench.commands.engine` measures image-steps a second. For each precision and batch size
it measures in turn, in one run:

- the network alone on a batch,
- the engine on as many chains,
- their rows and noise alone,
- the peak: a product of two large matrices in the same precision.
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

HEAD = [
    "precision",
    "batch",
    "network/s",
    "engine/s",
    "engine / network",
    "rows and noise / step",
    "of the matmul peak",
]
# Each is measured in so many turns, by the median of bursts of so many steps.
ROUNDS = 9
BURST = 16
# Rows and columns of the matrices.
_SIDE = {"cpu": 1024, "cuda": 8192}


@dataclass(frozen=True, slots=True)
class EngineRow:
    """The speed at one precision and batch size.

    Attributes:
        precision: What the network computes in.
        size: Chains in a batch.
        network_s: Seconds of the network alone.
        engine_s: Seconds of the engine's step.
        rows_s: Seconds of the rows and noise alone.
        peak: Floating-point operations a second of the matrix product.
        gflop: Cost of an image-step, in 10^9 floating-point operations.
    """

    precision: Precision
    size: int
    network_s: float
    engine_s: float
    rows_s: float
    peak: float
    gflop: float

    @property
    def per_s(self) -> float:
        """Image-steps a second of the engine."""
        return self.size / self.engine_s

    @property
    def cells(self) -> list[str]:
        """Cells of the table's row."""
        return [
            self.precision,
            str(self.size),
            f"{self.size / self.network_s:.0f}",
            f"{self.per_s:.0f}",
            f"{self.network_s / self.engine_s:.1%}",
            f"{self.rows_s / self.engine_s:.1%}",
            f"{self.per_s * self.gflop * 1e9 / self.peak:.0%}",
        ]


def main(
    model: Model = DEFAULT,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1")] = default_device(),
    precision: Annotated[
        Precision | None, typer.Option(help="One only; default: all that a worker would consider")
    ] = None,
    out: Out = OUT,
) -> None:
    """Measure image-steps a second of every batch size that agrees to the bit.

    It does so in every precision that the device has.
    """
    report = Report(out, "engine", device)
    kinds = [precision] if precision else precisions(torch.device(device))
    largest = sizes_on(torch.device(device))[-1]
    rows = [row for kind in kinds for row in measure(load(model, device, largest, kind))]
    report.say(
        f"{rows[0].gflop:g} GFLOP an image-step; medians of {ROUNDS} turns of {BURST} steps.\n"
    )
    report.table(HEAD, [row.cells for row in rows])
    plot(report, rows)


def measure(model: LoadedModel) -> Iterator[EngineRow]:
    """Yield the row of each batch size of the model."""
    model.calibration.use()
    for size in model.calibration.batch_sizes:
        runs = [_network(model, size), _engine(model, size), _rows(model, size), _product(model)]
        # The first turn warms up.
        times = [[time_burst(model, run) for run in runs] for _ in range(1 + ROUNDS)][1:]
        columns = zip(*times, strict=True)
        network_s, engine_s, rows_s, product_s = map(statistics.median, columns)
        yield EngineRow(
            model.precision,
            size,
            network_s,
            engine_s,
            rows_s,
            peak=2 * _side(model) ** 3 / product_s,
            gflop=model.card.gflop_per_image_step,
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
    """Record `run` as a graph on CUDA, as the engine's steps are.

    Small operations that are launched one by one take longer to launch than to do.
    """
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
def time_burst(model: LoadedModel, run: Callable[[], object]) -> float:
    """Return the seconds of one run, over BURST of them in a row."""
    model.engine.pool.wait()
    start = time.perf_counter()
    for _ in range(BURST):
        run()
    model.engine.pool.wait()
    return (time.perf_counter() - start) / BURST


def plot(report: Report, rows: list[EngineRow]) -> None:
    """Draw image-steps a second against batch size, two lines for each precision."""
    with report.plot() as axes:
        for precision in dict.fromkeys(row.precision for row in rows):
            own = [row for row in rows if row.precision == precision]
            sizes = [row.size for row in own]
            network_per_s = [row.size / row.network_s for row in own]
            engine_per_s = [row.per_s for row in own]
            axes.plot(sizes, network_per_s, "--", label=f"{precision}, network alone")
            axes.plot(sizes, engine_per_s, "o-", label=f"{precision}, engine")
        axes.set_xscale("log", base=2)
        axes.set_xlabel("batch size")
        axes.set_ylabel("image-steps/s")
        axes.set_ylim(bottom=0)
        axes.legend()


if __name__ == "__main__":
    typer.run(main)
