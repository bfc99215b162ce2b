"""Model cards made from files: they say what the files are."""

from __future__ import annotations

import copy

import pytest
import torch
from pydantic import ValidationError

from models.checkpoints import diffusers_format
from models.checkpoints.card import gflop_per_image_step, make_card
from models.checkpoints.catalog import SHIPPED, DataCard, read_card, sha256_of, write_card
from models.checkpoints.residual_variance import FILE, ResidualVariance
from models.networks.unet import UNet
from models.networks.unet_config import UNetConfig
from models.train.recipe import TrainingRecipe

WORDS = {
    "data": DataCard(name="noise", licence="CC0-1.0"),
    "licence": "MIT",
    "provenance": "made up",
}


def test_a_card_says_what_the_files_are(folder, small_net):
    card = make_card(folder, "tiny", **WORDS)
    assert (card.shape.channels, card.shape.height, card.shape.width) == (3, 8, 8)
    assert card.parameters == sum(p.numel() for p in small_net.parameters())
    assert card.sha256 == sha256_of(folder / "unet" / diffusers_format.WEIGHTS)
    assert (card.schedule.T, card.prediction) == (1000, "epsilon")
    assert (card.defaults.steps, card.defaults.variance) == (1000, "fixed_small")
    write_card(folder, card)
    assert read_card(folder) == card
    diffusers_format.load(folder, read_card(folder).sha256)


def test_a_card_names_the_estimate_in_its_folder(folder):
    weights = diffusers_format.load(folder).sha256
    found = ResidualVariance(weights=weights, data="noise", images=1, seed=0, values=(0.5,) * 1000)
    without = make_card(folder, "tiny", **WORDS)
    assert without.residual_variance is None
    named = without.model_copy(update={"residual_variance": found.write(folder)})
    assert make_card(folder, "tiny", **WORDS) == named
    found.model_copy(update={"weights": "ab" * 32}).write(folder)
    with pytest.raises(diffusers_format.BadCheckpoint, match=FILE):
        make_card(folder, "tiny", **WORDS)


@pytest.mark.parametrize("name", ["Upper", "has space", "../up", "", "x" * 65])
def test_a_name_that_no_url_could_hold_is_refused(folder, name):
    with pytest.raises(ValidationError, match="name"):
        make_card(folder, name, **WORDS)


def test_the_gflop_of_the_papers_cifar10_network_are_counted_with_its_attention():
    """They are 12.1, and a third of one for attention."""
    config = UNetConfig(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        downsample_padding=0,
    )
    # five of them over 16x16 positions and 256 channels, two products each
    attention = 5 * 2 * 2 * 256**2 * 256 / 1e9
    with torch.device("meta"):
        net = UNet(config)
    assert gflop_per_image_step(net) == pytest.approx(12.108 + attention, abs=0.01)


def test_the_count_is_the_same_on_any_device(small_net):
    elsewhere = copy.deepcopy(small_net).to("meta")
    assert gflop_per_image_step(small_net) == gflop_per_image_step(elsewhere)


def test_the_shipped_recipe_keeps_its_promise_of_size():
    """It has at most 3M parameters and 0.65 GFLOP per image-step, so that a laptop can serve it."""
    recipe = TrainingRecipe.read(SHIPPED.parent / "train" / "recipes" / "fashion-mnist-28.toml")
    with torch.device("meta"):
        net = UNet(recipe.network)
    assert net.parameter_count() <= 3_000_000
    assert gflop_per_image_step(net) <= 0.65
