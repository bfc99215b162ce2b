"""The model of the tests, loaded for a worker in this process."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from models.checkpoints.catalog import Catalog
from tests.support.folders import write_model
from worker.calibration.cache import CalibrationCache
from worker.jobs.domain import Precision
from worker.process.loaded_model import LoadedModel
from worker.settings import WorkerSettings

Model = TypeVar("Model", bound=LoadedModel)


class HeldModel(LoadedModel):
    """A model that takes no more steps than a test lets it.

    Its worker goes on with all else that it does.
    """

    def let(self, steps: int) -> None:
        """Let the model take so many steps from now on."""
        self._steps = threading.Semaphore(steps)

    def let_all(self) -> None:
        """Let the model take all steps."""
        self.let(10**9)

    def step(self, *args: Any, **options: Any) -> list[Any]:
        """Take a step if one is left."""
        if self._steps.acquire(blocking=False):
            return super().step(*args, **options)
        time.sleep(0.005)
        return []


def load_tiny(
    root: Path,
    capacity: int = 256,
    precision: Precision | Literal["auto"] = "auto",
    kind: type[Model] = LoadedModel,
) -> Model:
    """Write the model below `root`, and load it.

    The workers of other tests have the same network, and share what is measured of it.
    """
    write_model(root, "tiny")
    calibrations = CalibrationCache(WorkerSettings().cache_dir)
    catalog = Catalog.read(root)
    return kind(catalog, "tiny", torch.device("cpu"), capacity, precision, calibrations)
