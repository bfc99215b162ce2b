"""Model cards, which describe a model to clients, and which jobs are checked against. No torch.

A model is a folder in diffusers' format, with a `card.json` beside the weights. A catalog is a set
of such folders.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.checkpoints.atomic_files import write_whole
from models.diffusion.options import (
    SAMPLERS,
    Prediction,
    PublishedVariance,
    Sampler,
    Spacing,
    leading_fits,
)

CARD = "card.json"
ScheduleKind = Literal["linear", "scaled_linear", "cosine", "sigmoid", "laplace", "trained"]
# the kinds of schedules that lie between two betas
BETA_ENDS = ("linear", "scaled_linear", "sigmoid")
# Below this share of T, fixed_large leaves noise in the images, and is nobody's default.
_FEW_STEPS = 0.4
SHIPPED = Path(__file__).parents[1] / "weights"

# Image-steps of this arithmetic or less count as one: it is about that of the shipped model.
# A smaller network saves little, because each image-step also has a cost of its own.
REFERENCE_GFLOP = 0.6

_SHA256 = r"^[0-9a-f]{64}$"


class CatalogError(Exception):
    """A model folder that cannot be served; the text names the file and the remedy.

    Attributes:
        folder: The folder's name; empty if it is about all of them.
    """

    def __init__(self, message: str, folder: str = "") -> None:
        super().__init__(message)
        self.folder = folder


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Shape(_Frozen):
    channels: int = Field(
        ge=1, le=4, description="1: grey, 2: grey with alpha, 3: RGB, 4: RGBA", examples=[1]
    )
    height: int = Field(ge=1, description="Pixels", examples=[28])
    width: int = Field(ge=1, description="Pixels", examples=[28])


class ScheduleCard(_Frozen):
    kind: ScheduleKind = Field(description="How beta_t grows with t", examples=["linear"])
    T: int = Field(
        ge=1, le=100_000, description="Timesteps that the network was trained with", examples=[1000]
    )
    beta_start: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="beta_1, for the schedules that have one",
        examples=[1e-4],
    )
    beta_end: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="beta_T, for the schedules that have one",
        examples=[0.02],
    )
    zero_snr: bool = Field(
        default=False, description="alpha_bar is rescaled to end at 0", examples=[False]
    )

    @model_validator(mode="after")
    def _betas_count(self) -> Self:
        """Refuse betas that a schedule of this kind would not look at."""
        if self.kind not in BETA_ENDS and (self.beta_start, self.beta_end) != (None, None):
            raise ValueError(
                f"kind={self.kind} does not use beta_start and beta_end; remove them, or use"
                f" {', '.join(BETA_ENDS)}"
            )
        return self


class Timesteps(_Frozen):
    spacing: Spacing = Field(
        default="linspace", description="How a job's timesteps are chosen", examples=["linspace"]
    )
    offset: int = Field(
        default=0, ge=0, description="First timestep of the spacing `leading`", examples=[0]
    )


class Defaults(_Frozen):
    sampler: Sampler = Field(
        default="ddpm", description="Used when a job names no sampler", examples=["ddpm"]
    )
    steps: int = Field(ge=1, description="Used when a job names no number of steps", examples=[100])
    variance: PublishedVariance = Field(
        default="fixed_small",
        description="Reverse variance of the ddpm sampler. fixed_large is used from 0.4 T steps on;"
        " fewer steps take fixed_small",
        examples=["fixed_small"],
    )
    eta: float = Field(
        default=0.0, ge=0, le=1, description="Noise of the ddim sampler", examples=[0.0]
    )


class DataCard(_Frozen):
    name: str = Field(description="Data set", examples=["Fashion-MNIST, training images"])
    licence: str = Field(description="Licence of the data", examples=["MIT"])
    images: int | None = Field(
        default=None, description="Number of images trained on", examples=[60000]
    )


LabelName = Annotated[str, Field(pattern=r"^\S(.{0,198}\S)?$")]


class ClassesCard(_Frozen):
    """The classes of a conditional network.

    A label is a number from 0 to count - 1. It is a row of the network's embedding of classes, or
    the row after it from the null class on, which no label names.
    """

    count: int = Field(
        ge=1, le=10**6, description="Classes: a job's labels are 0 to count - 1", examples=[10]
    )
    names: tuple[LabelName, ...] | None = Field(
        default=None,
        description="The name of each class, by its label; null: labels are numbers only",
        examples=[["cat", "dog"]],
    )
    null: int | None = Field(
        default=None,
        ge=0,
        description="Row of the embedding that means no class, which guidance needs;"
        " null: there is none, and jobs may not ask for guidance",
        examples=[10],
    )

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.names is not None:
            if len(self.names) != self.count:
                raise ValueError(f"{len(self.names)} names for {self.count} classes; give as many")
            if len(set(self.names)) < self.count:
                twice = next(name for name in self.names if self.names.count(name) > 1)
                raise ValueError(f"the name {twice!r} stands twice; names are unique")
        if self.null is not None and self.null > self.count:
            raise ValueError(
                f"null={self.null} is none of the {self.count + 1} rows; use 0 to {self.count}"
            )
        return self

    @property
    def rows(self) -> int:
        """Rows of the embedding: one for each class, and that of the null class."""
        return self.count + (self.null is not None)

    def row(self, label: int) -> int:
        """Return the embedding's row of a label."""
        return label + (self.null is not None and label >= self.null)


ModelName = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$",
        description="Unique name",
        examples=["fashion-mnist-28"],
    ),
]


class Card(_Frozen):
    """What is known of one model. Field names are the reference of `GET /v1/models`."""

    name: ModelName
    default: bool = Field(default=False, description="Used by jobs that name no model")
    shape: Shape
    schedule: ScheduleCard
    prediction: Prediction = Field(
        description="What the network's output estimates", examples=["epsilon"]
    )
    timesteps: Timesteps = Field(
        default=Timesteps(), description="Which of the T timesteps a job visits"
    )
    learned_variance: bool = Field(
        default=False, description="Whether jobs may ask for `variance` learned"
    )
    classes: ClassesCard | None = Field(
        default=None, description="What jobs' labels name; null: the network takes no labels"
    )
    samplers: tuple[Sampler, ...] = Field(
        default=SAMPLERS, description="Samplers that a job may name"
    )
    defaults: Defaults
    parameters: int = Field(description="Weights of the network", examples=[2734945])
    gflop_per_image_step: float = Field(
        description="GFLOP of one forward pass for one image (2 per multiply-add)", examples=[0.577]
    )
    data: DataCard
    licence: str = Field(description="Licence of the weights", examples=["Apache-2.0"])
    provenance: str = Field(
        description="How the weights came to be", examples=["trained by `make train`"]
    )
    sha256: str = Field(pattern=_SHA256, description="Of the safetensors file")
    residual_variance: str | None = Field(
        default=None,
        pattern=_SHA256,
        description="sha256 of the estimate that `variance` analytic needs;"
        " null: there is none, and jobs may not ask for it",
    )

    @property
    def cost_per_image_step(self) -> int:
        """How many image-steps of the reference cost one of this model counts as, at least 1.

        Limits on open work add up the jobs of all models. The number is whole, so that sums of it
        are exact.
        """
        return max(1, round(self.gflop_per_image_step / REFERENCE_GFLOP))

    @property
    def png_bytes_at_most(self) -> int:
        """What a PNG of one image takes at most: its rows as they are, and its recipe."""
        rows = self.shape.height * (self.shape.channels * self.shape.width + 1)
        # deflate adds 5 bytes to each block that it cannot compress; 4 KiB hold all else
        return rows + 5 * (rows // 16_000 + 1) + 4096

    @model_validator(mode="after")
    def _default_steps_fit(self) -> Self:
        if self.defaults.steps > self.schedule.T:
            raise ValueError(
                f"defaults.steps={self.defaults.steps} is more than the schedule's T;"
                f" use 1 to {self.schedule.T}"
            )
        if not self.takes_steps(self.defaults.steps):
            raise ValueError(
                f"defaults.steps={self.defaults.steps} do not fit the spacing"
                f" {self.timesteps.spacing} with the offset {self.timesteps.offset}"
            )
        return self

    def takes_steps(self, steps: int) -> bool:
        """Tell whether so many timesteps can be chosen, from 1 to T."""
        T = self.schedule.T
        leads = self.timesteps.spacing == "leading"
        return 1 <= steps <= T and (not leads or leading_fits(steps, T, self.timesteps.offset))

    def default_variance(self, steps: int) -> PublishedVariance:
        """Choose the reverse variance of so many steps, for a job that names none.

        fixed_large is made for all T of them: at 10 it leaves visible noise.
        """
        published = self.defaults.variance
        are_few = steps < _FEW_STEPS * self.schedule.T
        return "fixed_small" if published == "fixed_large" and are_few else published


class Catalog(Mapping[str, Card]):
    """Cards by name, and the folder of each."""

    def __init__(self, folders: Mapping[str, Path], cards: Mapping[str, Card]) -> None:
        """Take the folder and the card of each model, by name."""
        self._folders = dict(folders)
        self._cards = dict(cards)

    @classmethod
    def read(cls, *roots: Path, skip: Callable[[CatalogError], object] | None = None) -> Catalog:
        """Read every folder with a card below `roots`.

        A later root's model replaces an earlier one's of the same name.

        Args:
            roots: Folders of model folders.
            skip: Takes the fault of each card that cannot be read, which is then left out. None:
                the first fault is raised.

        Raises:
            CatalogError: A card cannot be read, or there is none.
        """
        folders: dict[str, Path] = {}
        cards: dict[str, Card] = {}
        for folder in _card_folders(roots):
            try:
                card = read_card(folder)
            except CatalogError as fault:
                if skip is None:
                    raise
                skip(fault)
            else:
                folders[card.name] = folder
                cards[card.name] = card
        if not folders:
            raise CatalogError(
                f"no {CARD} below {', '.join(map(str, roots))};"
                " add a model with `ddpm models add FOLDER`"
            )
        return cls(folders, cards)

    def __getitem__(self, name: str) -> Card:
        return self._cards[name]

    # It is an Iterator at run time.
    def __iter__(self) -> Iterable[str]:  # type: ignore[override]
        return iter(self._cards)

    def __len__(self) -> int:
        return len(self._cards)

    def folder(self, name: str) -> Path:
        """Return a model's folder. Raises KeyError for a name that is not in the catalog."""
        return self._folders[name]

    @property
    def default(self) -> Card:
        """The last card marked default, or the last of all if none is, in order of reading."""
        marked = [card for card in self._cards.values() if card.default]
        return (marked or list(self._cards.values()))[-1]


def _card_folders(roots: Iterable[Path]) -> list[Path]:
    return [
        card.parent for root in roots if root.is_dir() for card in sorted(root.glob(f"*/{CARD}"))
    ]


def read_card(folder: Path) -> Card:
    """Read a model folder's card.

    Raises:
        CatalogError: It is missing or wrong. The text names the file, the fault and the remedy.
    """
    path = folder / CARD
    try:
        return Card.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise CatalogError(
            f"{folder} has no {CARD}; write one with `ddpm models add {folder}`", folder.name
        ) from None
    except OSError as error:
        raise CatalogError(
            f"{path} cannot be read ({error.strerror}); give the user of this process the right to",
            folder.name,
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        fault = first["msg"].removeprefix("Value error, ")
        raise CatalogError(
            f"{path}: {where}: {fault}; correct it or write it anew with `ddpm models add`",
            folder.name,
        ) from None


def read_classes(folder: Path, sha256: str) -> ClassesCard:
    """Read which classes the network of a model folder has, from its card.

    Args:
        folder: The model folder.
        sha256: Of its weights.

    Raises:
        CatalogError: There is no card, or it is of other weights, or it has no classes.
    """
    card = read_card(folder)
    if card.sha256 != sha256 or card.classes is None:
        raise CatalogError(
            f"{folder / CARD} does not say which classes these weights have;"
            f" write it anew with `ddpm models add {folder}`"
        )
    return card.classes


def write_card(folder: Path, card: Card) -> None:
    """Write a model folder's card, all of it or nothing."""
    write_whole(folder / CARD, f"{card.model_dump_json(indent=2)}\n".encode())


def sha256_of(path: Path) -> str:
    """Hash a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
