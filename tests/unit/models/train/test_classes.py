"""Runs that learn classes: which rows they train, what a resumed one keeps, what is shown."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image

from models.checkpoints import diffusers_format
from models.checkpoints.catalog import read_card
from models.train.data.images import ArrayImages, BadData, Labels
from models.train.export import export
from models.train.recipe import BadRecipe
from models.train.report.samples import draw_samples
from models.train.trainer import Trainer

CPU = torch.device("cpu")
NAMES = ("dark", "middle", "bright")


@pytest.fixture
def images():
    """Thirty images, each of one grey level, which is its class."""
    labels = torch.arange(30) % 3
    pixels = (labels * 120).to(torch.uint8)[:, None, None, None].expand(30, 1, 8, 8)
    return ArrayImages(pixels.clone(), Labels(labels, 3, NAMES))


@pytest.fixture
def make(make_recipe):
    """`make(label_dropout=0.2, ...)` makes a recipe with classes and other options of training."""

    def recipe(**changes):
        made = make_recipe(**changes)
        return made.model_copy(update={"data": made.data.model_copy(update={"classes": True})})

    return recipe


def test_a_row_is_kept_for_no_class_and_a_share_of_images_trains_it(tmp_path, make, images):
    trainer = Trainer(make(label_dropout=0.25, batch_size=30), images, tmp_path / "out", CPU)
    assert (trainer.net.cfg.num_class_embeds, trainer.classes.null) == (4, 3)
    drawn = torch.cat([trainer.classes_of(n) for n in range(40)])
    assert 0.2 < (drawn == 3).float().mean() < 0.3
    # The classes that are left are those of the images.
    of_images = torch.cat([images.labels.of_images[trainer.drawn(n)] for n in range(40)])
    assert torch.equal(drawn[drawn < 3], of_images[drawn < 3])


def test_without_dropout_there_is_no_null_class(tmp_path, make, images):
    trainer = Trainer(make(label_dropout=0.0), images, tmp_path / "out", CPU)
    assert (trainer.net.cfg.num_class_embeds, trainer.classes.null) == (3, None)
    assert torch.equal(trainer.classes_of(0), images.labels.of_images[trainer.drawn(0)])


def test_every_row_is_trained_and_tells_its_class(tmp_path, make, images, train):
    began = Trainer(make(label_dropout=0.3), images, tmp_path / "new", CPU)
    trainer = train(make(label_dropout=0.3), tmp_path / "out")
    rows = trainer.net.class_embedding.weight.detach()
    assert bool((rows != began.net.class_embedding.weight).any(1).all())
    x, t = torch.ones(4, 1, 8, 8), torch.full((4,), 90)
    trainer.net.eval()
    with torch.no_grad():
        drawn = trainer.net(x, t, torch.arange(4))
    assert len(drawn.flatten(1).unique(dim=0)) == 4


def test_a_run_with_classes_in_two_parts_is_the_run_in_one_to_the_bit(tmp_path, make, train):
    straight = train(make(), tmp_path / "straight")
    train(make(), tmp_path / "parts", only=5)
    torch.manual_seed(999)
    resumed = train(make(), tmp_path / "parts")
    for name, weight in straight.net.state_dict().items():
        assert torch.equal(weight, resumed.net.state_dict()[name])
    assert resumed.classes == straight.classes


def test_a_sheet_has_a_row_for_each_class(tmp_path, make, train):
    trainer = train(make(), tmp_path / "out")
    with Image.open(draw_samples(trainer)) as sheet:
        assert sheet.size == (8 * 8, 3 * 8)
    # One of a class: the null row is nobody's.
    with torch.no_grad():
        trainer.ema.averages["class_embedding.weight"][3] = torch.nan
    with Image.open(draw_samples(trainer, images=3)) as sheet:
        assert sheet.size == (8, 3 * 8)


def test_an_export_has_the_names_and_the_null_class(tmp_path, make, train):
    trainer = train(make(), tmp_path / "out")
    folder = export(trainer)
    classes = read_card(folder).classes
    assert (classes.names, classes.count, classes.null) == (NAMES, 3, 3)
    assert diffusers_format.load(folder).net.cfg.num_class_embeds == 4


def test_the_recipe_may_name_the_classes(tmp_path, make, train):
    recipe = make()
    card = recipe.card.model_copy(update={"class_names": ("night", "dusk", "day")})
    folder = export(train(recipe.model_copy(update={"card": card}), tmp_path / "out"))
    assert read_card(folder).classes.names == ("night", "dusk", "day")


@pytest.mark.parametrize(
    ("section", "changes", "says"),
    [
        ("network", {"num_class_embeds": 3}, "3 classes, and one for no class; use 4, or leave"),
        ("card", {"class_names": ("a", "b")}, "2 names for 3 classes; give as many"),
        ("card", {"class_names": ("a", "b", "a")}, "the name 'a' stands twice"),
    ],
)
def test_a_recipe_that_does_not_fit_the_classes_is_refused(
    tmp_path, make, images, section, changes, says
):
    recipe = make()
    if section == "network":
        changed = replace(recipe.network, **changes)
    else:
        changed = recipe.card.model_copy(update=changes)
    with pytest.raises(BadRecipe, match=says):
        Trainer(recipe.model_copy(update={section: changed}), images, tmp_path / "out", CPU)
    assert not (tmp_path / "out").exists()


def test_a_name_that_cannot_stand_in_a_card_is_found_before_training(tmp_path, make, images):
    named = ArrayImages(images.pixels, Labels(images.labels.of_images, 3, ("a", " b", "c")))
    with pytest.raises(BadData, match=r"' b': .*; rename the folder"):
        Trainer(make(), named, tmp_path / "out", CPU)


def test_a_validation_gives_each_image_its_own_class(tmp_path, make, images):
    recipe = make()
    data = recipe.data.model_copy(update={"held_out": 0.3})
    trainer = Trainer(recipe.model_copy(update={"data": data}), images, tmp_path / "out", CPU)
    with torch.no_grad():
        trainer.ema.averages["class_embedding.weight"][3] = torch.nan
    assert trainer.validate() < 10
