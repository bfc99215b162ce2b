"""The engine with no service around it: no HTTP, queue, PNGs or reports."""

from __future__ import annotations

from pathlib import Path

import torch

from bench.lib import work
from bench.lib.model import load
from bench.systems.drawing import Draw
from bench.systems.service import PrecisionOption
from worker.calibration.calibrate import sizes_on
from worker.engine.chain import ChainRequest


def prepare(folder: Path, device: str, precision: PrecisionOption) -> tuple[str, Draw]:
    """Load the model of a folder.

    Returns:
        A description of how it draws, and what draws: images as the bytes of their pixels.
    """
    model = load(folder, device, sizes_on(torch.device(device))[-1], precision)

    def draw(count: int, steps: int, seed: int) -> list[bytes]:
        plan = model.plan("ddpm", steps, "fixed_small", 0.0)
        requests = [ChainRequest(i, "bench", plan, seed, i) for i in range(count)]
        images = work.draw(model.engine, requests)
        return [images[i].numpy().tobytes() for i in range(count)]

    return f"in {model.precision}, without HTTP, queue and PNGs", draw
