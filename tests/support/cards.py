"""Models that have a card and no weights, which is all that the API reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.checkpoints.catalog import Card, DataCard, Defaults, ScheduleCard, Shape, write_card


def card_of(name: str, **changes: Any) -> Card:
    fields: dict[str, Any] = {
        "name": name,
        "default": True,
        "shape": Shape(channels=1, height=8, width=8),
        "schedule": ScheduleCard(kind="linear", T=1000, beta_start=1e-4, beta_end=0.02),
        "prediction": "epsilon",
        "defaults": Defaults(steps=100),
        "parameters": 1,
        "gflop_per_image_step": 0.001,
        "data": DataCard(name="none", licence="none"),
        "licence": "Apache-2.0",
        "provenance": "made by a test",
        "sha256": "ab" * 32,
    }
    return Card(**fields | changes)


def write_card_of(name: str, root: Path, **changes: Any) -> Path:
    """Write the card below `root`, and return `root`, to be used as `models_dir`."""
    (root / name).mkdir(parents=True)
    write_card(root / name, card_of(name, **changes))
    return root
