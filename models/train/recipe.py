"""The configuration file of a training run (TOML)."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from models.checkpoints.catalog import DataCard, Defaults, ModelName, ScheduleCard
from models.checkpoints.scheduler_config import schedule_of
from models.diffusion.options import Prediction
from models.networks.unet_config import UNetConfig

# `attention_head_dim` in a recipe for one head over all channels: TOML has no null.
ONE_HEAD = "all"
NOT_GIVEN = "not given"
_TEMPLATE = "`ddpm train --new FILE` writes a recipe with every key"
_MOST_WARMUP = 5000
# Ho and Salimans (2022) find 0.1 and 0.2 equally good.
_LABEL_DROPOUT = 0.1
_STEPS = 100


class BadRecipe(ValueError):
    """The configuration file cannot be followed; the text names the key."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSection(_Section):
    """[data]: what the network is trained on."""

    path: Path = Field(description="a folder of images, an IDX file (also `.gz`) or an `.npz`")
    horizontal_flip: bool = Field(
        default=False, description="mirror half of the images, as the paper does for CIFAR10"
    )
    held_out: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the images that is not trained on, for a validation loss",
    )
    classes: bool = Field(
        default=False,
        description="whether the network learns classes: those of the folders in `path`, of the"
        " `labels-idx1` file beside it, or of the array `labels` of an `.npz`",
    )
    name: str | None = Field(
        default=None, description="name of the data, for the model's card; else that of the path"
    )
    licence: str = Field(default=NOT_GIVEN, description="licence of the data, for the model's card")


class TrainingSection(_Section):
    """[training]: how it is trained, and how often the run saves and shows its state."""

    updates: int = Field(ge=1, description="updates of the weights until the run ends, 1 or more")
    batch_size: int = Field(default=128, ge=1, description="images of one update, 1 or more")
    learning_rate: float = Field(
        default=2e-4, gt=0, allow_inf_nan=False, description="Adam's, more than 0"
    )
    warmup_updates: int | None = Field(
        default=None,
        ge=0,
        description="updates in which the learning rate rises to its value, from 0;"
        " else a tenth of `updates` as the run begins, at most 5000",
    )
    gradient_clip: float = Field(
        default=1.0, gt=0, description="largest norm of the gradient, more than 0"
    )
    label_dropout: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="share of images that are trained on without their class, 0 or more and less"
        " than 1, which guidance needs; with `data.classes` 0.1 if left out",
    )
    ema_decay: float = Field(
        default=0.9999,
        ge=0,
        lt=1,
        description="decay of the averaged weights, 0 or more and less than 1;"
        " it is lower at first",
    )
    seed: int = Field(
        default=0,
        ge=0,
        le=2**53 - 1,
        description="of weights, batches, timesteps and noise, 0 to 2^53 - 1",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto",
        description='`"fp32"`, `"bf16"`, or `"auto"`: the faster of both at the start of the run',
    )
    save_every_s: float = Field(
        default=300,
        gt=0,
        description="seconds between two saves: the state, the model with its card,"
        " the loss as a curve and as CSV",
    )
    sample_every_s: float = Field(
        default=900, gt=0, description="seconds between two sheets of samples"
    )
    sample_steps: int | None = Field(
        default=None,
        ge=1,
        description="steps of the samples on a sheet, 1 to `schedule.T`; else 100, or `schedule.T`",
    )
    tensorboard: bool = Field(
        default=False,
        description="whether losses and sheets are also written as TensorBoard events;"
        " needs `make extra EXTRA=tensorboard`",
    )

    @property
    def warmup_as_it_begins(self) -> int:
        """Updates of the warm-up of a run that begins now."""
        if self.warmup_updates is not None:
            return self.warmup_updates
        return min(_MOST_WARMUP, self.updates // 10)


class CardSection(_Section):
    """[card]: what the model's card says that cannot be measured."""

    name: ModelName
    licence: str = Field(default=NOT_GIVEN, description="licence of the weights")
    default: bool = Field(default=False, description="whether jobs that name no model get this one")
    class_names: tuple[str, ...] | None = Field(
        default=None,
        description="names of the classes, by their numbers; else those of their folders, or none",
    )
    defaults: Defaults | None = None


def _one_head(network: object) -> object:
    if isinstance(network, Mapping) and network.get("attention_head_dim") == ONE_HEAD:
        return {**network, "attention_head_dim": None}
    return network


class TrainingRecipe(_Section):
    """Everything that a training run depends on, except for the data's bytes."""

    data: DataSection
    network: Annotated[UNetConfig, BeforeValidator(_one_head)]
    schedule: ScheduleCard = ScheduleCard(kind="linear", T=1000, beta_start=1e-4, beta_end=0.02)
    prediction: Prediction = Field(
        default="epsilon",
        description='what the output estimates: `"epsilon"`, `"sample"` or `"v_prediction"`',
    )
    training: TrainingSection
    card: CardSection

    @model_validator(mode="after")
    def _steps_exist(self) -> Self:
        """Refuse numbers of steps that do not exist now, not at the first save."""
        wanted = {
            "training.sample_steps": self.sample_steps,
            "card.defaults.steps": self.defaults.steps,
        }
        for key, steps in wanted.items():
            if steps > self.schedule.T:
                raise ValueError(
                    f"{key}={steps} is more than schedule.T={self.schedule.T};"
                    f" give 1 to {self.schedule.T}"
                )
        return self

    @model_validator(mode="after")
    def _can_be_trained(self) -> Self:
        """Refuse networks that need what training does not give them, as L_vlb."""
        if self.network.class_embed_type is not None:
            raise ValueError(
                f"network.class_embed_type={self.network.class_embed_type} is not trained;"
                " leave it out: classes have rows of an embedding"
            )
        if self.network.learns_variance:
            raise ValueError(
                f"network: out_channels={self.network.out_channels} learn a variance,"
                " which L_simple does not train; give as many as in_channels"
            )
        if self.defaults.variance == "learned":
            raise ValueError("card.defaults.variance=learned needs a network that learned one")
        return self

    @model_validator(mode="after")
    def _classes_fit(self) -> Self:
        """Refuse what only a network with classes would look at."""
        if self.data.classes:
            return self
        given = {
            "network.num_class_embeds": self.network.num_class_embeds,
            "training.label_dropout": self.training.label_dropout,
            "card.class_names": self.card.class_names,
        }
        for key, value in given.items():
            if value is not None:
                raise ValueError(f"{key} needs data.classes = true; add that, or leave it out")
        return self

    @model_validator(mode="after")
    def _is_a_process(self) -> Self:
        if self.schedule.zero_snr and self.prediction == "epsilon":
            raise ValueError(
                "prediction=epsilon says nothing of an image at the last timestep of zero_snr;"
                " use v_prediction or sample"
            )
        if not schedule_of(self.schedule).can_be_reversed:
            raise ValueError(
                "schedule: its alpha_bar falls to 0 or not at every step; lower T or beta_end"
            )
        return self

    @property
    def sample_steps(self) -> int:
        """Steps of the samples on a sheet."""
        return self.training.sample_steps or min(_STEPS, self.schedule.T)

    @property
    def label_dropout(self) -> float:
        """Share of images that are trained on without their class."""
        if not self.data.classes:
            return 0.0
        given = self.training.label_dropout
        return _LABEL_DROPOUT if given is None else given

    @property
    def defaults(self) -> Defaults:
        """What jobs of the model use by default."""
        return self.card.defaults or Defaults(steps=min(_STEPS, self.schedule.T))

    @classmethod
    def read(cls, path: Path) -> TrainingRecipe:
        """Read a recipe from a TOML file.

        Raises:
            BadRecipe: It cannot be read or followed. The text names the file, and every key that
                is at fault.
        """
        try:
            return cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise BadRecipe(
                f"{path} does not exist; {_TEMPLATE}, and models/train/recipes/ has examples"
            ) from None
        except OSError as error:
            raise BadRecipe(f"{path} cannot be read ({error.strerror}); name a TOML file") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise BadRecipe(f"{path} is not TOML: {error}; {_TEMPLATE}") from None
        except ValidationError as error:
            raise BadRecipe(f"{path}: {'; '.join(_faults(error))}") from None

    def data_card(self, images: int) -> DataCard:
        """Describe the data, of so many images, for the model's card."""
        name = self.data.name or self.data.path.resolve().name
        return DataCard(name=name, licence=self.data.licence, images=images)


def _faults(error: ValidationError) -> Iterator[str]:
    """Say what is wrong with each key, and where its name is wrong, how all are found."""
    names_are_wrong = False
    for fault in error.errors():
        key = ".".join(map(str, fault["loc"]))
        text = fault["msg"].removeprefix("Value error, ")
        if fault["type"] in ("missing", "missing_argument"):
            names_are_wrong = True
            yield f"{key} is required"
        elif fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            names_are_wrong = True
            yield f"{key} is no key of a recipe{_meant(key)}"
        elif isinstance(fault["input"], str | int | float):
            yield f"{key}: {text}, not {fault['input']!r}"
        else:
            yield f"{key}: {text}" if key else text
    if names_are_wrong:
        yield _TEMPLATE


def _meant(key: str) -> str:
    close = difflib.get_close_matches(key, list(recipe_keys()), n=1, cutoff=0.8)
    return f", did you mean {close[0]}?" if close else ""


def recipe_keys() -> dict[str, dict[str, Any]]:
    """Return the JSON schema of every key, by its dotted name, in the order of a file.

    A key whose section may be left out has as its default what the section then holds. `required`
    is true where there is no default.
    """
    schema = TrainingRecipe.model_json_schema()
    # In TOML what belongs to no section stands before the first.
    return dict(sorted(_keys(schema, schema, "", None), key=lambda item: "." in item[0]))


def _keys(
    schema: dict[str, Any], section: dict[str, Any], prefix: str, given: dict[str, Any] | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, field in section["properties"].items():
        options = [one for one in field.get("anyOf", []) if one.get("type") != "null"]
        kind = options[0] if options else field
        default = (given or {}).get(name, field.get("default"))
        if "$ref" in kind:
            nested = schema["$defs"][kind["$ref"].rpartition("/")[2]]
            yield from _keys(schema, nested, f"{prefix}{name}.", default)
        else:
            required = name in section.get("required", ()) and not (given or {}).get(name)
            yield prefix + name, {**field, **kind, "default": default, "required": required}
