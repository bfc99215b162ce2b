"""A recipe to begin with, fitted to the pictures: their number, their size and their colours."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from models.checkpoints import diffusers_format
from models.checkpoints.catalog import ClassesCard, ScheduleCard, read_classes
from models.checkpoints.diffusers_format import Checkpoint, Description
from models.checkpoints.scheduler_config import schedule_of
from models.diffusion.options import CLIPPED
from models.networks.unet_config import UNetConfig
from models.train.data.images import BadData, Size, sides_of
from models.train.data.look import Look
from models.train.recipe import ONE_HEAD, BadRecipe, TrainingRecipe

_WIDTHS = (32, 64, 128, 128)
_SMALLEST_LEVEL = 7
# Larger pictures need more of them, and ten times the time.
_LARGE, _MANY = 64, 1000
_USUAL = 32
_PASSES = 64
_FINE_TUNING_RATE = 1e-4
_REMEDY = "`ddpm train --new FILE --from MODEL` writes a recipe that fits"


@dataclass(frozen=True, slots=True)
class Pretrained:
    """A trained model that a run goes on from.

    Attributes:
        name: What it is called in the new model's card.
        checkpoint: Its network, process and hash.
        schedule: Its schedule, as a card has it.
        classes: What its labels name; None without classes.
    """

    name: str
    checkpoint: Checkpoint
    schedule: ScheduleCard
    classes: ClassesCard | None = None

    @classmethod
    def load(cls, folder: Path) -> Pretrained:
        """Load a model folder.

        Raises:
            BadCheckpoint: It cannot be loaded.
            BadRecipe: No recipe says what it is.
            CatalogError: It has classes, and no card says which.
        """
        described = diffusers_format.describe(folder)
        name = folder.resolve().name
        if reason := _not_in_a_recipe(described):
            raise BadRecipe(f"{name} cannot be trained on: {reason}; name another model")
        loaded = diffusers_format.load_described(described)
        classes = None
        if described.config.is_conditional:
            classes = read_classes(folder, loaded.sha256)
        return cls(name, loaded, described.published.card, classes)

    def values(self) -> dict[str, Any]:
        """Return the values of a recipe that the model fixes, by key."""
        network = asdict(self.checkpoint.net.cfg)
        network["attention_head_dim"] = network["attention_head_dim"] or ONE_HEAD
        process = self.schedule.model_dump()
        found = {f"network.{key}": value for key, value in network.items()}
        found |= {f"schedule.{key}": value for key, value in process.items()}
        found["prediction"] = self.checkpoint.prediction
        found["training.learning_rate"] = _FINE_TUNING_RATE
        if self.classes:
            found["data.classes"] = True
            found["training.label_dropout"] = None if self.classes.null is not None else 0
        return {key: value for key, value in found.items() if value is not None}

    def check(self, recipe: TrainingRecipe, network: UNetConfig) -> None:
        """Check that a recipe is of this network and process. Only dropout may be another.

        Args:
            recipe: The recipe.
            network: Its network, with its classes.

        Raises:
            BadRecipe: It is of another one. The text names the first key that differs.
        """
        cfg = self.checkpoint.net.cfg
        if self.classes and not recipe.data.classes:
            raise BadRecipe(f"{self.name} has classes, and data.classes is false; {_REMEDY}")
        for key, value in asdict(cfg).items():
            asked = asdict(network)[key]
            if asked != value and key != "dropout":
                raise BadRecipe(
                    f"network.{key}={asked!r} is not that of {self.name}, {value!r}; {_REMEDY}"
                )
        if recipe.prediction != self.checkpoint.prediction:
            raise BadRecipe(
                f"prediction={recipe.prediction!r} is not that of {self.name},"
                f" {self.checkpoint.prediction!r}; {_REMEDY}"
            )
        beta = schedule_of(recipe.schedule).beta
        if not torch.equal(beta, self.checkpoint.schedule.beta):
            raise BadRecipe(f"[schedule] is not that of {self.name}; {_REMEDY}")


@dataclass(frozen=True, slots=True)
class StartingRecipe:
    """The recipe of a run that has none yet.

    Attributes:
        data: What it trains on.
        updates: Its updates; None chooses them by the number of images.
        classes: Whether it learns the classes of the data.
        pretrained: What it goes on from; None begins with random weights.
    """

    data: Path
    updates: int | None = None
    classes: bool = False
    pretrained: Pretrained | None = None

    @property
    def name(self) -> str:
        """A name for the run, made of that of the data."""
        stem = self.data.resolve().name.partition(".")[0].lower()
        return re.sub(r"[^a-z0-9_-]+", "-", stem).strip("-_")[:48] or "model"

    def values(self, look: Look) -> dict[str, Any]:
        """Choose the values of a recipe, by key.

        Raises:
            BadData: The pictures are too small.
        """
        model = self.pretrained
        size = model.checkpoint.net.cfg.sample_size if model else side_of(look)
        levels = min(map(levels_of, sides_of(size)))
        plain = levels - 1
        batch_size = 64 if look.images >= 500 else 32 if look.images >= 32 else 16
        updates = min(20_000, max(2000, look.images * _PASSES // batch_size))
        return {
            "data.path": str(self.data),
            "data.horizontal_flip": False,
            "data.classes": self.classes,
            "network.sample_size": size,
            "network.in_channels": look.channels,
            "network.out_channels": look.channels,
            "network.block_out_channels": list(_WIDTHS[:levels]),
            "network.layers_per_block": 1,
            "network.down_block_types": ["DownBlock2D"] * plain + ["AttnDownBlock2D"],
            "network.up_block_types": ["AttnUpBlock2D"] + ["UpBlock2D"] * plain,
            "network.attention_head_dim": ONE_HEAD,
            "network.norm_num_groups": 8,
            "training.updates": self.updates or updates,
            "training.batch_size": batch_size,
            "training.learning_rate": 5e-4,
            "card.name": f"{self.name}-{size if isinstance(size, int) else '{}x{}'.format(*size)}",
            **(model.values() if model else {}),
        }


def _not_in_a_recipe(model: Description) -> str | None:
    """Say what a model has that no recipe can state. None: nothing."""
    cfg, published = model.config, model.published
    if not isinstance(cfg, UNetConfig):
        return (
            f"its network is of the family {model.network['_class_name']}, and a recipe's"
            " [network] describes a UNet2DModel"
        )
    if cfg.class_embed_type is not None:
        return f"class_embed_type={cfg.class_embed_type!r} is no embedding of classes"
    if cfg.learns_variance:
        return "its network learned a variance, which L_simple does not train"
    if published.card.kind == "trained":
        return "its schedule is a list of betas, and a recipe's is computed"
    if published.process.clipping != CLIPPED:
        return "its x_0_hat is not clipped at 1, as that of a trained model is"
    usual = asdict(UNetConfig(sample_size=8))
    for key, value in asdict(cfg).items():
        if value is None and usual[key] is not None and key != "attention_head_dim":
            return f"its {key} is null, which TOML does not have"
    return None


def side_of(look: Look) -> Size:
    """Choose the size of the images to train on: a side in pixels, or height and width.

    Raises:
        BadData: The pictures are too small.
    """
    if look.is_fixed:
        return look.side
    shorter = min(sides_of(look.side))
    if shorter >= _LARGE and look.images >= _MANY:
        return _LARGE
    side = min(_USUAL, shorter // 4 * 4)
    if side < 8:
        raise BadData(f"the pictures are {shorter} pixels a side; give some of at least 8")
    return side


def levels_of(size: int) -> int:
    """Count the levels of a network for that size: the last sees about 8 pixels a side."""
    levels = 1
    while levels < len(_WIDTHS) and size % 2 == 0 and size // 2 >= _SMALLEST_LEVEL:
        size //= 2
        levels += 1
    return levels
