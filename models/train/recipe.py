"""The configuration file of a training run (TOML)."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.checkpoints.catalog import DataCard, Defaults, ModelName, ScheduleCard
from models.checkpoints.diffusers_format import schedule_of
from models.diffusion.options import Prediction
from models.networks.unet_config import UNetConfig


class BadRecipe(ValueError):
    """The configuration file cannot be followed; the text names the key."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSection(_Section):
    """[data]: what the network is trained on."""

    path: Path = Field(description="Image folder, IDX file (also .gz) or .npz")
    horizontal_flip: bool = Field(
        default=True, description="Mirror half of the images, as the paper does for CIFAR10"
    )
    name: str
    licence: str


class TrainingSection(_Section):
    """[training]: how it is trained, and how often the run saves and shows its state."""

    updates: int = Field(ge=1)
    batch_size: int = Field(default=128, ge=1)
    learning_rate: float = Field(default=2e-4, gt=0, allow_inf_nan=False)
    warmup_updates: int = Field(default=5000, ge=0)
    gradient_clip: float = Field(default=1.0, gt=0)
    ema_decay: float = Field(default=0.9999, ge=0, lt=1)
    seed: int = Field(default=0, ge=0, le=2**53 - 1)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    save_every_s: float = Field(default=300, gt=0, description="Checkpoint, card and loss curve")
    sample_every_s: float = Field(default=900, gt=0, description="Sample grid")
    sample_steps: int = Field(default=100, ge=1)


class CardSection(_Section):
    """[card]: what the model's card says that cannot be measured."""

    name: ModelName
    licence: str
    default: bool = False
    defaults: Defaults


class TrainingRecipe(_Section):
    """Everything that a training run depends on, except for the data's bytes."""

    data: DataSection
    network: UNetConfig
    schedule: ScheduleCard = ScheduleCard(kind="linear", T=1000, beta_start=1e-4, beta_end=0.02)
    prediction: Prediction = "epsilon"
    training: TrainingSection
    card: CardSection

    @model_validator(mode="after")
    def _steps_exist(self) -> Self:
        """Refuse numbers of steps that do not exist now, not at the first save."""
        wanted = {
            "training.sample_steps": self.training.sample_steps,
            "card.defaults.steps": self.card.defaults.steps,
        }
        for key, steps in wanted.items():
            if steps > self.schedule.T:
                raise ValueError(
                    f"{key}={steps} is more than schedule.T={self.schedule.T};"
                    f" give 1 to {self.schedule.T}"
                )
        return self

    @model_validator(mode="after")
    def _leads_back(self) -> Self:
        if not schedule_of(self.schedule).can_be_reversed:
            raise ValueError(
                "schedule: its alpha_bar falls to 0 or not at every step; lower T or beta_end"
            )
        return self

    @classmethod
    def read(cls, path: Path) -> TrainingRecipe:
        """Read a recipe from a TOML file.

        Raises:
            BadRecipe: It cannot be read or followed. The text names the file, the key and the
                fault.
        """
        try:
            return cls.model_validate(tomllib.loads(path.read_text()))
        except FileNotFoundError:
            raise BadRecipe(
                f"{path} does not exist; the shipped recipes are in models/train/recipes/"
            ) from None
        except OSError as error:
            raise BadRecipe(f"{path} cannot be read ({error.strerror}); name a TOML file") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise BadRecipe(f"{path} is not TOML: {error}") from None
        except ValidationError as error:
            located = ((".".join(map(str, e["loc"])), e["msg"]) for e in error.errors())
            faults = "; ".join(": ".join(filter(None, parts)) for parts in located)
            raise BadRecipe(f"{path}: {faults}") from None

    def data_card(self, images: int) -> DataCard:
        """Describe the data, of so many images, for the model's card."""
        return DataCard(name=self.data.name, licence=self.data.licence, images=images)
