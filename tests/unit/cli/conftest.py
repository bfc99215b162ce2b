from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from models import checkpoint
from models.catalog import ScheduleCard
from models.unet import UNet
from tests.support.networks import TINY
from tests.support.played import Played, playing


@pytest.fixture
def tiny_model(tmp_path: Path) -> Path:
    """A model folder without a card, as somebody else's training would leave it."""
    folder = tmp_path / "elsewhere"
    checkpoint.save(folder, TINY, UNet(TINY).state_dict(), ScheduleCard(kind="linear", T=20), "epsilon")
    return folder


@pytest.fixture
def service() -> Iterator[Played]:
    with playing() as played:
        yield played
