"""The configuration file of a training run (TOML)."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.catalog import DataCard, Defaults, Prediction, ScheduleCard
from models.unet_config import UNetConfig


class BadRecipe(ValueError):
    """The configuration file cannot be followed; the text names the key."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSection(_Section):
    path: Path = Field(description="Image folder, IDX file (also .gz) or .npz")
    horizontal_flip: bool = Field(default=True, description="Mirror half of the images, as the paper does for CIFAR10")
    name: str
    licence: str


class TrainingSection(_Section):
    updates: int = Field(ge=1)
    batch_size: int = Field(default=128, ge=1)
    learning_rate: float = Field(default=2e-4, gt=0)
    warmup_updates: int = Field(default=5000, ge=0)
    gradient_clip: float = Field(default=1.0, gt=0)
    ema_decay: float = Field(default=0.9999, ge=0, lt=1)
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    save_every_s: float = Field(default=300, gt=0, description="Checkpoint, card and loss curve")
    sample_every_s: float = Field(default=900, gt=0, description="Sample grid")
    sample_steps: int = Field(default=100, ge=1)


class CardSection(_Section):
    name: str
    licence: str
    default: bool = False
    defaults: Defaults


class Recipe(_Section):
    """All that a training run depends on, the data's bytes apart."""

    data: DataSection
    network: UNetConfig
    schedule: ScheduleCard = ScheduleCard(kind="linear", T=1000, beta_start=1e-4, beta_end=0.02)
    prediction: Prediction = "epsilon"
    training: TrainingSection
    card: CardSection

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """Raises BadRecipe with the key, the fault and the file."""
        try:
            return cls.model_validate(tomllib.loads(path.read_text()))
        except FileNotFoundError:
            raise BadRecipe(f"{path} does not exist; the shipped recipes are in models/train/recipes/") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise BadRecipe(f"{path} is not TOML: {error}") from None
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise BadRecipe(f"{path}: {faults}") from None

    def data_card(self, images: int) -> DataCard:
        return DataCard(name=self.data.name, licence=self.data.licence, images=images)
