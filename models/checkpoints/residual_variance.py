"""The estimate of what x_t leaves unknown of x_0, as a file next to a model's card.

The analytic variance is made of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from models.checkpoints.atomic_files import write_whole
from models.checkpoints.bad_checkpoint import BadCheckpoint
from models.checkpoints.catalog import sha256_of
from models.checkpoints.layout import ESTIMATE

FILE = ESTIMATE
_REMEDY = "remove it, or estimate it again with `ddpm models variance`"


class ResidualVariance(BaseModel):
    """One network's squared error on images that it was trained on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: str = Field(description="sha256 of the weights that it was estimated for")
    data: str = Field(description="File or folder of the pictures")
    images: int = Field(ge=1, description="Number of pictures, each at every timestep")
    seed: int = Field(description="Of their noise")
    values: tuple[Annotated[float, Field(ge=0, le=4)], ...] = Field(
        description="At t = 0..T-1 the mean over pictures and dimensions of (x_0 - x_0_hat)^2"
    )

    def write(self, folder: Path) -> str:
        """Write the file into a model folder, and return its sha256."""
        write_whole(folder / FILE, f"{self.model_dump_json(indent=1)}\n".encode())
        return sha256_of(folder / FILE)

    @classmethod
    def read(cls, folder: Path, weights: str, T: int, sha256: str | None = None) -> Self:
        """Read the file of a model folder.

        Args:
            folder: The model folder.
            weights: sha256 of the weights that it must be of.
            T: The timesteps that it must have.
            sha256: What the file's hash must be. None: any.

        Raises:
            BadCheckpoint: The file is missing or damaged, or is not the one that is asked for.
        """
        path = folder / FILE
        try:
            found = cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise BadCheckpoint(
                f"{path} is missing, and the card names it;"
                " estimate it again with `ddpm models variance`"
            ) from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise BadCheckpoint(f"{path}: {where}: {first['msg']}; {_REMEDY}") from None
        if found.weights != weights:
            raise BadCheckpoint(
                f"{path} is of weights {found.weights[:12]}, the model has {weights[:12]};"
                f" {_REMEDY}"
            )
        if len(found.values) != T:
            raise BadCheckpoint(
                f"{path} holds {len(found.values)} values, the schedule has {T} timesteps;"
                f" {_REMEDY}"
            )
        if sha256 not in (None, sha256_of(path)):
            raise BadCheckpoint(f"{path} is not the one that the card names; {_REMEDY}")
        return found

    @classmethod
    def find(cls, folder: Path, weights: str, T: int) -> Self | None:
        """Read the file if the folder has one, whatever its card says.

        Raises:
            BadCheckpoint: The file is damaged, or is not of these weights or this T.
        """
        return cls.read(folder, weights, T) if (folder / FILE).exists() else None

    @property
    def tensor(self) -> Tensor:
        """The values, float64 (T,)."""
        return torch.tensor(self.values, dtype=torch.float64)
