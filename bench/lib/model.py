"""A model in this process, as a worker loads it; and engines on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer

from models.checkpoints.catalog import SHIPPED, Catalog, read_card
from worker.calibration.cache import CalibrationCache
from worker.engine.engine import Engine
from worker.jobs.domain import Precision
from worker.process.loaded_model import LoadedModel

_CATALOG = Catalog.read(SHIPPED)
DEFAULT = _CATALOG.folder(_CATALOG.default.name)
Model = Annotated[
    Path,
    typer.Option(
        help="Folder of the model; `python -m bench.commands.paper` makes one of the paper's size"
    ),
]


def load(
    folder: Path,
    device: str,
    capacity: int,
    precision: Precision | Literal["auto"] = "auto",
    cache: CalibrationCache | None = None,
) -> LoadedModel:
    """Load a model as a worker does.

    It is calibrated here and now unless there is a `cache`, which may hold what was measured on a
    busy machine.

    Args:
        folder: Folder of the model.
        device: Device to compute on.
        capacity: Chains that its pool has room for.
        precision: What to compute in; auto takes what a worker would take.
        cache: Where calibrations are saved.
    """
    card = read_card(folder)
    catalog = Catalog({card.name: folder}, {card.name: card})
    return LoadedModel(catalog, card.name, torch.device(device), capacity, precision, cache)


def engine_on(model: LoadedModel, batch_sizes: Sequence[int]) -> Engine:
    """Return an empty engine that uses only these of the model's batch sizes.

    It shares the model's pool, so use one engine at a time.
    """
    seconds = {size: model.calibration.seconds[size] for size in batch_sizes}
    return Engine(model.engine.pool, seconds)
