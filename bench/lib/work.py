"""What the parity table is made of: a number of images by all samplers, some steps each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from bench.lib.model import load
from models.diffusion.plans import Plan
from worker.calibration.cache import CalibrationCache
from worker.engine.chain import ChainRequest, Finished
from worker.engine.engine import Engine
from worker.jobs.domain import Precision
from worker.process.loaded_model import LoadedModel
from worker.settings import WorkerSettings

Images = dict[int, Tensor]  # by index, uint8 (C, H, W)


@dataclass(frozen=True, slots=True)
class Work:
    """Can be sent to another process, which then makes the same requests."""

    folder: Path
    device: str
    precision: Precision
    images: int
    steps: int

    def model(self) -> LoadedModel:
        """Bytes are what it is for, not times, so a worker's calibration will do."""
        return load(
            self.folder,
            self.device,
            2 * self.images,
            self.precision,
            CalibrationCache(WorkerSettings().cache_dir),
        )

    def requests(self, model: LoadedModel) -> list[ChainRequest]:
        """Image i is of plan i modulo 4; its chain is named i. Neighbours differ in sampler, seed and number of steps."""
        plans = plans_of(model, self.steps)
        return [
            ChainRequest(i, i % len(plans), plans[i % len(plans)], seed=i % len(plans), index=i)
            for i in range(self.images)
        ]


def plans_of(model: LoadedModel, steps: int) -> list[Plan]:
    """Every sampler, with noise and without, about `steps` rows each."""
    return [
        model.plan("ddpm", steps, "fixed_small", 0.0),
        model.plan("ddim", steps + 1, "fixed_small", 0.0),
        model.plan("ddim", max(1, steps - 1), "fixed_small", 0.7),
        model.plan("dpmpp_2m", steps, "fixed_small", 0.0),
    ]


def draw(engine: Engine, requests: Iterable[ChainRequest]) -> Images:
    """All of them, let in at once."""
    engine.submit(list(requests))
    images: Images = {}
    while len(engine):
        images |= pictures(engine.step())
    return images


def pictures(finished: Iterable[Finished]) -> Images:
    """Those of the work: strangers' chains are not named by a number."""
    ours = [done for done in finished if isinstance(done.request.chain, int)]
    assert all(done.pixels is not None for done in ours), "the network's output is finite"
    return {done.request.index: done.pixels for done in ours if done.pixels is not None}
