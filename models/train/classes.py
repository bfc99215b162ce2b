"""The classes that a run learns, as rows of the network's embedding."""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import ValidationError
from torch import Tensor

from models.checkpoints.catalog import ClassesCard
from models.networks.unet_config import UNetConfig
from models.train.data.images import BadData, Images, Labels
from models.train.recipe import BadRecipe, TrainingRecipe


def choose_classes(recipe: TrainingRecipe, images: Images) -> ClassesCard | None:
    """Choose the classes of a run that begins now; the null class, if there is one, is the last.

    Args:
        recipe: The run's.
        images: What it is trained on, with their labels.

    Returns:
        The classes, or None where the recipe has none.

    Raises:
        BadData: The names cannot stand in a card.
    """
    labels = images.labels
    if labels is None:
        return None
    null = labels.count if recipe.label_dropout else None
    try:
        return ClassesCard(count=labels.count, names=labels.names, null=null)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise BadData(
            f"{recipe.data.path}: the classes cannot stand in a card: {where}={fault['input']!r}:"
            f" {fault['msg']}; rename the folder"
        ) from None


def check_classes(recipe: TrainingRecipe, classes: ClassesCard | None) -> None:
    """Check that a recipe fits the classes.

    Raises:
        BadRecipe: It asks for other rows or names, or for a null class that is not there.
    """
    if classes is None:
        return
    rows = recipe.network.num_class_embeds
    if rows is not None and rows != classes.rows:
        none = ", and one for no class" if classes.null is not None else ""
        raise BadRecipe(
            f"network.num_class_embeds={rows} does not fit: the data have {classes.count}"
            f" classes{none}; use {classes.rows}, or leave it out"
        )
    names_in_card(recipe, classes)
    if recipe.label_dropout and classes.null is None:
        raise BadRecipe(
            f"training.label_dropout={recipe.label_dropout} trains a null class, and the model has"
            " none; use 0"
        )


def names_in_card(recipe: TrainingRecipe, classes: ClassesCard) -> tuple[str, ...] | None:
    """Return the names of the classes for the model's card: the recipe's, or those of the data.

    Raises:
        BadRecipe: The recipe's do not fit.
    """
    names = recipe.card.class_names
    if names is None:
        return classes.names
    try:
        return ClassesCard(count=classes.count, names=names, null=classes.null).names
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise BadRecipe(f"card.class_names cannot stand in a card: {reason}") from None


def network_of(recipe: TrainingRecipe, classes: ClassesCard | None) -> UNetConfig:
    """Return the recipe's network, with as many rows of classes as there are."""
    rows = None if classes is None else classes.rows
    return replace(recipe.network, num_class_embeds=rows)


def rows_of(labels: Labels, classes: ClassesCard) -> Tensor:
    """Return the embedding's row of each image, int64 (N,)."""
    rows = torch.tensor([classes.row(label) for label in range(classes.count)])
    return rows[labels.of_images]
