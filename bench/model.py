"""The shipped model in this process, as a worker loads it; and engines on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from models.catalog import SHIPPED, Catalog
from worker.calibration_cache import CalibrationCache
from worker.contract import Precision
from worker.engine import Engine
from worker.loaded import LoadedModel


def load(
    device: str, capacity: int, precision: Precision | Literal["auto"] = "auto", cache: CalibrationCache | None = None
) -> LoadedModel:
    """Calibrated here and now unless there is a `cache`: what that holds may have been measured beside other work."""
    catalog = Catalog.read(SHIPPED)
    return LoadedModel(catalog, catalog.default.name, torch.device(device), capacity, precision, cache)


def engine_on(model: LoadedModel, buckets: Sequence[int]) -> Engine:
    """An empty engine that uses these of the model's buckets only; it shares the model's pool, so use one engine at a time."""
    return Engine(model.engine.pool, {size: model.calibration.seconds[size] for size in buckets})
