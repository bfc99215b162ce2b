"""Training recipes: the shipped ones can be followed, and faults are named by their key."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.train import recipe as module
from models.train.recipe import BadRecipe, TrainingRecipe


def test_the_shipped_recipes_can_be_followed():
    shipped = sorted((Path(module.__file__).parent / "recipes").glob("*.toml"))
    assert shipped
    for path in shipped:
        recipe = TrainingRecipe.read(path)
        assert recipe.card.name == path.stem
        assert recipe.card.defaults.steps <= recipe.schedule.T


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("dropout = 0.1", "dropuot = 0.1", r"network\.dropuot"),
        ("seed = 3", "sede = 3", r"training\.sede"),
        ("[schedule]", "[shedule]", "shedule"),
        ("batch_size = 6", "batch_size = 0", r"training\.batch_size: .*greater than or equal to 1"),
        ("batch_size = 6", "batch_size = 'many'", r"training\.batch_size: .*integer"),
        (
            'precision = "fp32"',
            'precision = "fp8"',
            r"training\.precision: .*'auto', 'fp32' or 'bf16'",
        ),
        ("updates = 12", "", r"training\.updates: .*required"),
        ("sample_size = 8", "", r"network\.sample_size: .*required"),
        (
            "sample_size = 8",
            "sample_size = 9",
            "network: .*sample_size=9 cannot be halved 1 times; use a multiple of 2",
        ),
        (
            "norm_num_groups = 4",
            "norm_num_groups = 5",
            "network: .*norm_num_groups=5 does not divide 8 channels",
        ),
        ("out_channels = 1", "out_channels = 2", "network: .*out_channels=2"),
        ("beta_end = 0.2", "beta_end = 0.9999999", "schedule: its alpha_bar falls to 0"),
        ("beta_end = 0.2", "beta_end = 2", r"schedule\.beta_end: .*less than 1"),
        ('kind = "linear"', 'kind = "quadratic"', r"schedule\.kind: .*'linear' or 'cosine'"),
        ('sampler = "ddim"', 'sampler = "euler"', r"card\.defaults\.sampler"),
        ("[data]", "[data", "is not TOML"),
        ('name = "blobs-8"', 'name = "Blobs 8"', r"card\.name: String should match pattern"),
        (
            "sample_steps = 4",
            "sample_steps = 101",
            r"training\.sample_steps=101 is more than schedule\.T=100; give 1 to 100",
        ),
        (
            "steps = 20",
            "steps = 101",
            r"card\.defaults\.steps=101 is more than schedule\.T=100; give 1 to 100",
        ),
        ("seed = 3", "seed = -1", r"training\.seed: .*greater than or equal to 0"),
        (
            "seed = 3",
            "seed = 9007199254740992",
            r"training\.seed: .*less than or equal to 9007199254740991",
        ),
        ("learning_rate = 2e-3", "learning_rate = inf", r"training\.learning_rate: .*finite"),
    ],
)
def test_a_fault_is_named_by_its_key_and_file(tmp_path, recipe_text, old, new, says):
    path = tmp_path / "recipe.toml"
    assert old in recipe_text
    path.write_text(recipe_text.replace(old, new, 1))
    with pytest.raises(BadRecipe, match=says) as error:
        TrainingRecipe.read(path)
    assert str(path) in str(error.value)


def test_a_missing_recipe_is_named_with_the_place_of_the_shipped_ones(tmp_path):
    text = r"does not exist; the shipped recipes are in models/train/recipes/"
    with pytest.raises(BadRecipe, match=text):
        TrainingRecipe.read(tmp_path / "absent.toml")


def test_a_file_that_is_not_text_is_not_toml(tmp_path):
    (tmp_path / "r.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadRecipe, match="is not TOML"):
        TrainingRecipe.read(tmp_path / "r.toml")


def test_a_folder_is_no_recipe(tmp_path):
    with pytest.raises(BadRecipe, match=r"cannot be read .*directory.*; name a TOML file"):
        TrainingRecipe.read(tmp_path)
