"""The engine with no service around it: what it draws without HTTP, queue, PNGs and reports."""

from __future__ import annotations

from pathlib import Path

import torch

from bench.lib import work
from bench.lib.model import load
from bench.systems.drawing import Draw
from bench.systems.service import Asked
from worker.calibration.calibrate import sizes_on
from worker.engine.chain import ChainRequest


def drawing(folder: Path, device: str, precision: Asked) -> tuple[str, Draw]:
    """How it draws, in words, and what does: pictures as the bytes of their pixels."""
    model = load(folder, device, sizes_on(torch.device(device))[-1], precision)

    def draw(count: int, steps: int, seed: int) -> list[bytes]:
        plan = model.plan("ddpm", steps, "fixed_small", 0.0)
        images = work.draw(
            model.engine, [ChainRequest(i, "bench", plan, seed, i) for i in range(count)]
        )
        return [images[i].numpy().tobytes() for i in range(count)]

    return f"in {model.precision}, without HTTP, queue and PNGs", draw
