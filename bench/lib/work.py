"""The work of the parity table: a number of images by all samplers, some steps each."""

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

# Images by index, uint8 (C, H, W).
Images = dict[int, Tensor]


@dataclass(frozen=True, slots=True)
class Work:
    """A number of images to make.

    It can be sent to another process, which then makes the same requests.
    """

    folder: Path
    device: str
    precision: Precision
    images: int
    steps: int

    def model(self) -> LoadedModel:
        """Load the model. It is for bytes, not times, so a worker's calibration will do."""
        cache = CalibrationCache(WorkerSettings().cache_dir)
        return load(self.folder, self.device, 2 * self.images, self.precision, cache)

    def requests(self, model: LoadedModel) -> list[ChainRequest]:
        """Return a request for each image.

        Image i has plan i modulo 4, and its chain is named i. Neighbours differ in sampler, seed
        and number of steps.
        """
        plans = sampler_plans(model, self.steps)
        requests = []
        for i in range(self.images):
            number = i % len(plans)
            requests.append(ChainRequest(i, number, plans[number], seed=number, index=i))
        return requests


def sampler_plans(model: LoadedModel, steps: int) -> list[Plan]:
    """Return plans of every sampler, with noise and without, of about `steps` rows each."""
    return [
        model.plan("ddpm", steps, "fixed_small", 0.0),
        model.plan("ddim", steps + 1, "fixed_small", 0.0),
        model.plan("ddim", max(1, steps - 1), "fixed_small", 0.7),
        model.plan("dpmpp_2m", steps, "fixed_small", 0.0),
    ]


def draw(engine: Engine, requests: Iterable[ChainRequest]) -> Images:
    """Make all images, their chains submitted at once."""
    engine.submit(list(requests))
    images: Images = {}
    while len(engine):
        images |= images_by_index(engine.step())
    return images


def images_by_index(finished: Iterable[Finished]) -> Images:
    """Return the images of the work among those that finished.

    Chains of other people are left out; their names are no numbers.
    """
    ours = [done for done in finished if isinstance(done.request.chain, int)]
    assert all(done.pixels is not None for done in ours), "the network's output is finite"
    return {done.request.index: done.pixels for done in ours if done.pixels is not None}
