"""Model cards made from files: they say what the files are."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode

from models.checkpoints import diffusers_format, layout
from models.checkpoints.bad_checkpoint import BadCheckpoint
from models.checkpoints.card import StatedClasses, gflop_per_image_step, make_card
from models.checkpoints.catalog import (
    SHIPPED,
    ClassesCard,
    DataCard,
    ScheduleCard,
    read_card,
    sha256_of,
    write_card,
)
from models.checkpoints.residual_variance import FILE, ResidualVariance
from models.networks.families import build
from models.networks.linear_attention_config import LinearAttentionConfig
from models.networks.unet import UNet
from models.networks.unet_config import UNetConfig
from models.train.recipe import TrainingRecipe
from tests.support.networks import TINY

WORDS = {
    "data": DataCard(name="noise", licence="CC0-1.0"),
    "licence": "MIT",
    "provenance": "made up",
}


def test_a_card_says_what_the_files_are(folder, small_net):
    card = make_card(folder, "tiny", **WORDS)
    assert (card.shape.channels, card.shape.height, card.shape.width) == (3, 8, 8)
    assert card.parameters == sum(p.numel() for p in small_net.parameters())
    assert card.sha256 == sha256_of(folder / "unet" / layout.WEIGHTS)
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
    with pytest.raises(BadCheckpoint, match=FILE):
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


def test_the_gflop_are_counted_without_loading_the_compiler():
    """It takes seconds, of each `ddpm models add`."""
    program = (
        "import sys; from models.checkpoints.card import gflop_per_image_step; "
        "from models.networks.unet import UNet; from tests.support.networks import TINY; "
        "assert gflop_per_image_step(UNet(TINY)) > 0; "
        "assert 'torch._dynamo' not in sys.modules; assert 'sympy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    "cfg", [TINY, LinearAttentionConfig(sample_size=16)], ids=["unet", "linear"]
)
def test_the_gflop_are_those_that_pytorch_s_own_counter_finds(cfg):
    net = build(cfg).eval().to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, *cfg.shape, device="meta"), torch.zeros(1, device="meta").long())
    assert gflop_per_image_step(build(cfg).eval()) == counter.get_total_flops() / 1e9


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


def conditional(folder, small_net, **options):
    """Write a network of the same shape that takes class labels."""
    cfg = replace(small_net.cfg, **options)
    linear = ScheduleCard(kind="linear", T=1000, beta_start=1e-4, beta_end=0.02)
    diffusers_format.save(folder, cfg, UNet(cfg).state_dict(), linear, "epsilon")
    return folder


@pytest.mark.parametrize("key", ["id2label", "class_names", "labels"])
@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json"])
def test_names_of_classes_are_read_from_the_files(tmp_path, small_net, key, file):
    folder = conditional(tmp_path / "model", small_net, num_class_embeds=3)
    names = {"0": "a", "2": "c", "1": "b"} if key == "id2label" else ["a", "b", "c"]
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: names}))
    card = make_card(folder, "tiny", **WORDS)
    assert card.classes == ClassesCard(count=3, names=("a", "b", "c"))
    stated = StatedClasses(names=("x", "y"), null=0)
    card = make_card(folder, "tiny", classes=stated, **WORDS)
    assert card.classes == ClassesCard(count=2, names=("x", "y"), null=0)


def test_labels_leave_the_null_class_out():
    assert [ClassesCard(count=3, null=1).row(label) for label in range(3)] == [0, 2, 3]
    assert [ClassesCard(count=3, null=3).row(label) for label in range(3)] == [0, 1, 2]
    assert [ClassesCard(count=3).row(label) for label in range(3)] == [0, 1, 2]
    with pytest.raises(ValidationError, match=r"null=4 is none of the 4 rows; use 0 to 3"):
        ClassesCard(count=3, null=4)


def test_a_class_that_is_a_vector_is_refused(tmp_path, small_net):
    folder = conditional(tmp_path / "model", small_net, class_embed_type="identity")
    with pytest.raises(BadCheckpoint, match="vector of 64 numbers for each image, which no label"):
        make_card(folder, "tiny", **WORDS)


def test_a_class_that_is_any_number_needs_names(tmp_path, small_net):
    folder = conditional(tmp_path / "model", small_net, class_embed_type="timestep")
    with pytest.raises(BadCheckpoint, match="name them with --label-names"):
        make_card(folder, "tiny", **WORDS)
    stated = StatedClasses(names=("a", "b"), null=2)
    card = make_card(folder, "tiny", classes=stated, **WORDS)
    assert card.classes == ClassesCard(count=2, names=("a", "b"), null=2)


def test_the_gflop_of_a_conditional_network_are_counted_with_a_label(small_net):
    plain = gflop_per_image_step(small_net)
    for options in ({"num_class_embeds": 3}, {"class_embed_type": "identity"}):
        assert gflop_per_image_step(UNet(replace(small_net.cfg, **options))) == plain
    timestep = UNet(replace(small_net.cfg, class_embed_type="timestep"))
    assert gflop_per_image_step(timestep) > plain
