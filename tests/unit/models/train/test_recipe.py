"""Training recipes: the shipped ones can be followed, and faults are named by their key."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.train import recipe as module
from models.train.data.look import Look
from models.train.recipe import NOT_GIVEN, BadRecipe, TrainingRecipe, recipe_keys
from models.train.recipe_keys import meaning, template
from models.train.start import StartingRecipe


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
        (
            "dropout = 0.1",
            "dropuot = 0.1",
            r"network\.dropuot is no key of a recipe, did you mean network\.dropout\?",
        ),
        ("seed = 3", "sede = 3", r"training\.sede"),
        ("[schedule]", "[shedule]", "shedule"),
        ("batch_size = 6", "batch_size = 0", r"training\.batch_size: .*greater than or equal to 1"),
        ("batch_size = 6", "batch_size = 'many'", r"training\.batch_size: .*integer"),
        (
            'precision = "fp32"',
            'precision = "fp8"',
            r"training\.precision: .*'auto', 'fp32' or 'bf16'",
        ),
        ("updates = 12", "", r"training\.updates is required; `ddpm train --new FILE` writes"),
        ("sample_size = 8", "", r"network\.sample_size is required"),
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
        ('kind = "linear"', 'kind = "cosine"', "schedule: kind=cosine does not use beta_start"),
        ("beta_end = 0.2", "beta_end = 2", r"schedule\.beta_end: .*less than 1"),
        (
            'kind = "linear"',
            'kind = "quadratic"',
            r"schedule\.kind: .*'linear', 'scaled_linear', 'cosine'",
        ),
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
    text = r"does not exist; `ddpm train --new FILE` writes a recipe .* models/train/recipes/ has"
    with pytest.raises(BadRecipe, match=text):
        TrainingRecipe.read(tmp_path / "absent.toml")


def test_all_faults_are_named_at_once(tmp_path, recipe_text):
    path = tmp_path / "recipe.toml"
    text = recipe_text.replace("updates = 12", "").replace("seed = 3", "seeed = 3")
    path.write_text(text.replace("batch_size = 6", "batch_size = 0"))
    with pytest.raises(BadRecipe) as error:
        TrainingRecipe.read(path)
    for fault in ("training.updates is required", "training.batch_size: ", "training.seeed is no"):
        assert fault in str(error.value)
    assert "\n" not in str(error.value)


def test_one_head_of_attention_can_be_written(tmp_path, recipe_text):
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_text.replace("[network]", '[network]\nattention_head_dim = "all"'))
    network = TrainingRecipe.read(path).network
    assert network.attention_head_dim is None
    assert network.heads(16) == 1


def test_a_toy_needs_neither_licences_nor_names_of_data(tmp_path, recipe_text):
    path = tmp_path / "recipe.toml"
    lines = [
        line
        for line in recipe_text.splitlines()
        if not line.startswith(("licence", "defaults", 'name = "blobs"', "sample_steps"))
    ]
    path.write_text("\n".join(lines))
    recipe = TrainingRecipe.read(path)
    card = recipe.data_card(3)
    assert (card.name, card.licence, recipe.card.licence) == ("images", NOT_GIVEN, NOT_GIVEN)
    assert (recipe.sample_steps, recipe.defaults.steps) == (100, 100)


@pytest.mark.parametrize(("updates", "warmup"), [(5, 0), (200, 20), (10**6, 5000)])
def test_the_warm_up_is_a_tenth_of_the_updates_at_most(make_recipe, updates, warmup):
    training = make_recipe(updates=updates, warmup_updates=None).training
    assert training.warmup_as_it_begins == warmup


def test_every_key_has_a_meaning():
    assert [name for name in recipe_keys() if not meaning(name)] == []


def test_a_template_names_every_key_and_can_be_followed(tmp_path):
    values = StartingRecipe(Path("pictures")).values(Look(60, 64, 3, is_fixed=False))
    path = tmp_path / "recipe.toml"
    path.write_text(template(values))
    assert TrainingRecipe.read(path).network.sample_size == 32
    every = {
        line.removeprefix("# ").split(" = ")[0].removesuffix(" =")
        for line in path.read_text().splitlines()
    }
    assert {name.rpartition(".")[2] for name in recipe_keys()} <= every


def test_a_file_that_is_not_text_is_not_toml(tmp_path):
    (tmp_path / "r.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadRecipe, match="is not TOML"):
        TrainingRecipe.read(tmp_path / "r.toml")


def test_a_folder_is_no_recipe(tmp_path):
    with pytest.raises(BadRecipe, match=r"cannot be read .*directory.*; name a TOML file"):
        TrainingRecipe.read(tmp_path)
