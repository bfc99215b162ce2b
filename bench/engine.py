"""How much of the bare network's speed the engine keeps: `python -m bench.engine`.

For each bucket, in one run and in turn: the network alone on a batch; the engine on as many chains; the noise alone.
Prints a table of medians, and of ratios within the run.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the `ddpm` command does

import torch

from models.catalog import SHIPPED, Catalog
from models.noise import normal
from models.plans import compile_plan
from worker.engine import ChainRequest, Engine
from worker.loaded import LoadedModel

ROUNDS, BURST = 12, 5


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    catalog = Catalog.read(SHIPPED)
    model = LoadedModel(catalog, catalog.default.name, device, capacity=64)
    print(f"{model.card.name} on {device}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{'bucket':>6} {'network/s':>10} {'engine/s':>10} {'engine/network':>15} {'noise/step':>11}")
    for bucket in model.calibration.buckets:
        network_s, engine_s, noise_s = measure(model, bucket, device)
        kept, noise = network_s / engine_s, noise_s / engine_s
        print(f"{bucket:>6} {bucket / network_s:>10.0f} {bucket / engine_s:>10.0f} {kept:>15.1%} {noise:>11.1%}")


def measure(model: LoadedModel, bucket: int, device: torch.device) -> tuple[float, float, float]:
    """Seconds of one step: the network alone, the engine, the noise alone."""
    pool = model.engine.pool
    plan = compile_plan(model.schedule, model.schedule.T)
    engine = Engine(pool, {bucket: 1.0})
    engine.submit([ChainRequest(i, "bench", plan, 1, i) for i in range(bucket)])
    index = torch.arange(bucket, device=device)
    x = normal(index, index, index, pool.shape)

    def network() -> None:
        with torch.inference_mode():
            pool.network(x, index)

    def noise() -> None:
        normal(index, index, index, pool.shape)

    def step() -> None:
        engine.step()

    times: dict[Callable[[], None], list[float]] = {network: [], step: [], noise: []}
    for _ in range(ROUNDS):
        for run, seconds in times.items():
            seconds.append(_burst(run, device))
    medians = {run: statistics.median(seconds[1:]) for run, seconds in times.items()}
    return medians[network], medians[step], medians[noise]


def _burst(run: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    for _ in range(BURST):
        run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / BURST


if __name__ == "__main__":
    main()
