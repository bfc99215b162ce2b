"""A training run so small that it takes a second."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.train.data.images import ArrayImages
from models.train.recipe import TrainingRecipe
from models.train.trainer import Trainer

RECIPE = """
[data]
path = "images"
horizontal_flip = true
name = "blobs"
licence = "CC0-1.0"

[network]
sample_size = 8
in_channels = 1
out_channels = 1
block_out_channels = [8, 16]
layers_per_block = 1
down_block_types = ["DownBlock2D", "AttnDownBlock2D"]
up_block_types = ["AttnUpBlock2D", "UpBlock2D"]
norm_num_groups = 4
dropout = 0.1

[schedule]
kind = "linear"
T = 100
beta_start = 1e-3
beta_end = 0.2

[training]
updates = 12
batch_size = 6
learning_rate = 2e-3
warmup_updates = 5
seed = 3
precision = "fp32"
sample_steps = 4

[card]
name = "blobs-8"
licence = "MIT"
defaults = { steps = 20, sampler = "ddim" }
"""


@pytest.fixture
def recipe_text() -> str:
    return RECIPE


@pytest.fixture
def make_recipe(tmp_path):
    """`make_recipe(updates=3, ...)` changes options of the recipe above.

    They are those of its training, or of a named section.
    """

    def make(section: str = "training", **changes: object) -> TrainingRecipe:
        path = tmp_path / "recipe.toml"
        path.write_text(RECIPE)
        recipe = TrainingRecipe.read(path)
        changed = getattr(recipe, section).model_copy(update=changes)
        return recipe.model_copy(update={section: changed})

    return make


@pytest.fixture
def images() -> ArrayImages:
    """Twenty images with a bright left half: 20 is no multiple of the batch of 6."""
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 64, (20, 1, 8, 8), dtype=torch.uint8, generator=generator)
    pixels[..., :4] += 180
    return ArrayImages(pixels)


@pytest.fixture
def train(images):
    """`train(recipe, out)` runs a trainer to the recipe's end, or for `only` so many updates."""

    def run(recipe: TrainingRecipe, out: Path, only: int | None = None) -> Trainer:
        trainer = Trainer(recipe, images, out, torch.device("cpu"))
        stop_at = None if only is None else trainer.counters.update + only
        for _ in trainer.run(lambda: trainer.counters.update == stop_at):
            pass
        return trainer

    return run
