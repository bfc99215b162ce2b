"""Commands on a network with classes: trained, measured, fine-tuned and interpolated with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from cli.main import app
from models.checkpoints import diffusers_format
from models.checkpoints.catalog import Catalog, read_card

CPU = ("--device", "cpu")


def ddpm(*words: object, **environment: str) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env=environment)


def assert_fault(result: Result, says: str) -> None:
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1), result.output
    assert says in result.stderr


def write_pictures(folder: Path, *classes: str) -> Path:
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images of cats and dogs, and a run on them."""
    root = tmp_path_factory.mktemp("classes")
    data = write_pictures(root / "pets", "cat", "dog")
    words = ("--data", data, "--classes", "--out", root / "run", *CPU)
    trained = ddpm("train", *words, "--updates", 3)
    assert trained.exit_code == 0, trained.output
    assert "6 pictures (cat 3, dog 3)" in trained.stdout
    assert "2 classes, and a null class from 10% of the images" in trained.stdout
    return root


@pytest.fixture(scope="module")
def model(root: Path) -> Path:
    return root / "run" / "pets-8"


def test_a_run_on_class_folders_names_them_in_the_card(model):
    classes = read_card(model).classes
    assert (classes.names, classes.null) == (("cat", "dog"), 2)


def test_a_run_with_classes_is_resumed(root):
    words = ("--data", root / "pets", "--classes", "--out", root / "run", *CPU)
    resumed = ddpm("train", *words, "--updates", 4)
    assert "resumed at update 3" in resumed.stdout, resumed.output


def test_the_model_is_added_with_its_classes(model, tmp_path):
    added = ddpm("models", "add", model, DDPM_MODELS_DIR=str(tmp_path))
    assert added.exit_code == 0, added.output
    assert Catalog.read(tmp_path)["pets-8"].classes == read_card(model).classes


def test_an_evaluation_gives_each_picture_its_own_class_or_none(root, model, tmp_path):
    words = ("evaluate", model, "--data", root / "pets", "--images", 6, "--steps", 2, *CPU)
    own = ddpm(*words, "--out", tmp_path / "own")
    assert "in 2 steps, each with its own class; " in own.stdout, own.output
    none = ddpm(*words, "--out", tmp_path / "none", "--no-classes")
    assert "in 2 steps, each with no class; " in none.stdout, none.output
    saved = [json.loads((tmp_path / name / "likelihood.json").read_text()) for name in NAMES]
    assert [found["classes"] for found in saved] == ["its own", "no"]
    assert saved[0]["coding"]["rmse"] != saved[1]["coding"]["rmse"]
    assert_fault(ddpm(*words, "--out", tmp_path / "own", "--no-classes"), "with classes=its own")


NAMES = ("own", "none")


def test_pictures_of_other_classes_are_not_measured(model, tmp_path):
    data = write_pictures(tmp_path / "data", "cow")
    result = ddpm("evaluate", model, "--data", data, "--images", 1, *CPU)
    assert_fault(result, "cow are no classes of the model, which has cat, dog; rename")


def test_classes_are_of_networks_that_have_some(tiny_model, root):
    words = ("evaluate", tiny_model, "--data", root / "pets", "--images", 1, "--no-classes", *CPU)
    assert_fault(ddpm(*words), "--no-classes is for a network with classes")


def test_a_variance_is_estimated_with_the_classes_of_pictures(root, model):
    result = ddpm("models", "variance", model, "--data", root / "pets", "--images", 2, *CPU)
    assert result.exit_code == 0, result.output
    assert read_card(model).residual_variance is not None


def test_a_network_with_classes_is_fine_tuned_on_some_of_them(model, tmp_path):
    data = write_pictures(tmp_path / "dogs", "dog")
    words = ("--data", data, "--out", tmp_path / "run", "--from", model, *CPU, "--updates")
    result = ddpm("train", *words, 1)
    assert result.exit_code == 0, result.output
    (folder,) = (path.parent for path in (tmp_path / "run").glob("*/card.json"))
    assert read_card(folder).classes == read_card(model).classes
    before, after = (diffusers_format.load(one).net for one in (model, folder))
    assert torch.equal(before.class_embedding.weight[0], after.class_embedding.weight[0])
    assert "resumed at update 1" in ddpm("train", *words, 2).stdout


def test_a_recipe_without_classes_does_not_go_on_from_a_network_with_some(model, tmp_path):
    path = tmp_path / "recipe.toml"
    data = write_pictures(tmp_path / "dogs", "dog")
    assert ddpm("train", "--new", path, "--data", data, "--from", model).exit_code == 0
    text = path.read_text().replace("\nclasses = true", "\nclasses = false")
    path.write_text(text.replace("\nnum_class_embeds = 3", ""))
    result = ddpm("train", path, "--out", tmp_path / "run", "--from", model, *CPU)
    assert_fault(result, "pets-8 has classes, and data.classes is false; `ddpm train --new")


def test_the_class_between_two_pictures_is_named(root, model, tmp_path):
    pictures = (root / "pets" / "cat" / "0.png", root / "pets" / "dog" / "0.png")
    out = ("--t", 50, "--steps", 2, "--between", 1, "--out", tmp_path / "sheet.png", *CPU)
    words = ("interpolate", model, *pictures, *out)
    assert_fault(ddpm(*words), "needs a --label; give one of its 2 classes, cat, dog")
    assert_fault(ddpm(*words, "--label", "cow"), "--label cow is no class of it")
    drawn = []
    for label in ("cat", "1"):
        result = ddpm(*words, "--label", label)
        assert result.exit_code == 0, result.output
        drawn.append((tmp_path / "sheet.png").read_bytes())
    assert drawn[0] != drawn[1]


def test_the_class_between_two_pictures_is_guided(root, model, tmp_path):
    pictures = (root / "pets" / "cat" / "0.png", root / "pets" / "dog" / "0.png")
    out = ("--t", 50, "--steps", 2, "--between", 1, "--out", tmp_path / "sheet.png", *CPU)
    words = ("interpolate", model, *pictures, "--label", "cat", *out)
    drawn = {}
    for guidance in (None, 1, 0, 4):
        result = ddpm(*words, *(() if guidance is None else ("--guidance", guidance)))
        assert result.exit_code == 0, result.output
        drawn[guidance] = (tmp_path / "sheet.png").read_bytes()
    assert drawn[None] == drawn[1]
    assert len(set(drawn.values())) == 3


@pytest.mark.parametrize("guidance", ["-1", "101", "nan"])
def test_guidance_out_of_range_is_refused(root, model, guidance):
    picture = root / "pets" / "cat" / "0.png"
    words = ("interpolate", model, picture, picture, "--label", "cat", "--guidance", guidance)
    assert_fault(ddpm(*words, *CPU), f"--guidance {guidance} is out of range; give 0 to 100")


def test_guidance_is_refused_where_no_class_is_null(root, model, tiny_model, tmp_path):
    picture = root / "pets" / "cat" / "0.png"
    words = (picture, picture, "--guidance", 2, *CPU)
    plain = ddpm("interpolate", tiny_model, *words)
    assert_fault(plain, "--guidance 2 is for a network with classes; leave it out")
    folder = shutil.copytree(model, tmp_path / "every-row-a-class")
    text = (folder / "card.json").read_text()
    card = json.loads(text)
    card["classes"] = {"count": 3}
    (folder / "card.json").write_text(json.dumps(card))
    every = ddpm("interpolate", folder, *words, "--label", 2)
    assert_fault(every, "--guidance 2 needs a null class, and the model has none; leave it out")


def test_a_recipe_says_itself_whether_there_are_classes(tmp_path):
    result = ddpm("train", tmp_path / "recipe.toml", "--classes")
    assert_fault(result, "set data.classes in it")
