"""Training runs that take a second: a recipe and its data, and small runs without a recipe."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from models.train.report.samples import draw_samples

RECIPE = """
[data]
path = "{data}"
name = "noise"
licence = "none"

[network]
sample_size = 8
in_channels = 1
out_channels = 1
block_out_channels = [8, 8]
layers_per_block = 1
down_block_types = ["DownBlock2D", "DownBlock2D"]
up_block_types = ["UpBlock2D", "UpBlock2D"]
norm_num_groups = 4
attention_head_dim = 8

[schedule]
kind = "linear"
T = 20

[training]
updates = {updates}
batch_size = 4
precision = "fp32"
save_every_s = {save_every_s}
sample_steps = 2

[card]
name = "tiny"
licence = "MIT"
defaults = {{ steps = 5 }}
"""


def write_recipe(folder: Path, updates: int, save_every_s: float = 300) -> Path:
    """Write recipe.toml and data.npz, 16 images of 8 pixels a side, into a folder."""
    np.savez(folder / "data.npz", np.random.default_rng(0).integers(0, 256, (16, 8, 8), np.uint8))
    path = folder / "recipe.toml"
    path.write_text(
        RECIPE.format(data=folder / "data.npz", updates=updates, save_every_s=save_every_s)
    )
    return path


def make_runs_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Choose narrow networks for runs without a recipe, and draw sheets of four samples."""
    monkeypatch.setattr("models.train.start._WIDTHS", (8, 8, 8, 8))
    monkeypatch.setattr("cli.commands.train.draw_samples", partial(draw_samples, images=4))
