from __future__ import annotations

from pathlib import Path

import pytest

from models import checkpoint
from models.catalog import ScheduleCard
from models.unet import UNet
from tests.support.networks import TINY


@pytest.fixture
def tiny_model(tmp_path: Path) -> Path:
    """A model folder without a card, as somebody else's training would leave it."""
    folder = tmp_path / "elsewhere"
    checkpoint.save(folder, TINY, UNet(TINY).state_dict(), ScheduleCard(kind="linear", T=20), "epsilon")
    return folder
