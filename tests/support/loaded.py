"""The model of the tests, loaded for a worker in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from models.checkpoints.catalog import Catalog
from tests.support.folders import write_model
from worker.calibration.cache import CalibrationCache
from worker.jobs.domain import Precision
from worker.process.loaded_model import LoadedModel
from worker.settings import WorkerSettings


def load_tiny(
    root: Path, capacity: int = 256, precision: Precision | Literal["auto"] = "auto"
) -> LoadedModel:
    """Write the model below `root`, and load it.

    The workers of other tests have the same network, and share its calibration.
    """
    write_model(root, "tiny")
    calibrations = CalibrationCache(WorkerSettings().cache_dir)
    return LoadedModel(
        Catalog.read(root), "tiny", torch.device("cpu"), capacity, precision, calibrations
    )
