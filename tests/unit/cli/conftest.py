from __future__ import annotations

from pathlib import Path

import pytest

from models import checkpoint
from models.catalog import ScheduleCard
from models.unet import UNet
from models.unet_config import UNetConfig

TINY = UNetConfig(
    sample_size=8,
    in_channels=1,
    out_channels=1,
    block_out_channels=(8, 16),
    layers_per_block=1,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    norm_num_groups=4,
)


@pytest.fixture
def tiny_model(tmp_path: Path) -> Path:
    """A model folder without a card, as somebody else's training would leave it."""
    folder = tmp_path / "elsewhere"
    checkpoint.save(folder, TINY, UNet(TINY).state_dict(), ScheduleCard(kind="linear", T=20), "epsilon")
    return folder
