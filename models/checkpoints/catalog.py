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
from models.diffusion.options import SAMPLERS, FixedVariance, Prediction, Sampler

CARD = "card.json"
SHIPPED = Path(__file__).parents[1] / "weights"

_SHA256 = r"^[0-9a-f]{64}$"


class CatalogError(Exception):
    """A model folder that cannot be served; the text names the file and the remedy."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Shape(_Frozen):
    channels: int = Field(ge=1, description="1 for grey, 3 for RGB", examples=[1])
    height: int = Field(ge=1, description="Pixels", examples=[28])
    width: int = Field(ge=1, description="Pixels", examples=[28])


class ScheduleCard(_Frozen):
    kind: Literal["linear", "cosine"] = Field(
        description="How beta_t grows with t", examples=["linear"]
    )
    T: int = Field(
        ge=2, le=100_000, description="Timesteps that the network was trained with", examples=[1000]
    )
    beta_start: float | None = Field(
        default=None, gt=0, lt=1, description="beta_1, for a linear schedule", examples=[1e-4]
    )
    beta_end: float | None = Field(
        default=None, gt=0, lt=1, description="beta_T, for a linear schedule", examples=[0.02]
    )


class Defaults(_Frozen):
    sampler: Sampler = Field(
        default="ddpm", description="Used when a job names no sampler", examples=["ddpm"]
    )
    steps: int = Field(ge=1, description="Used when a job names no number of steps", examples=[100])
    variance: FixedVariance = Field(
        default="fixed_small",
        description="Reverse variance of the ddpm sampler",
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

    @model_validator(mode="after")
    def _default_steps_fit(self) -> Self:
        if self.defaults.steps > self.schedule.T:
            raise ValueError(
                f"defaults.steps={self.defaults.steps} is more than the schedule's T;"
                f" use 1 to {self.schedule.T}"
            )
        return self


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
            f"{folder} has no {CARD}; write one with `ddpm models add {folder}`"
        ) from None
    except OSError as error:
        raise CatalogError(
            f"{path} cannot be read ({error.strerror}); give the user of this process the right to"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        fault = first["msg"].removeprefix("Value error, ")
        raise CatalogError(
            f"{path}: {where}: {fault}; correct it or write it anew with `ddpm models add`"
        ) from None


def write_card(folder: Path, card: Card) -> None:
    """Write a model folder's card, all of it or nothing."""
    write_whole(folder / CARD, f"{card.model_dump_json(indent=2)}\n".encode())


def sha256_of(path: Path) -> str:
    """Hash a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
