"""What `ddpm models add` was given: a folder, a file of a trainer, or the name of a repository."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor

from models.checkpoints.bad_checkpoint import BadCheckpoint
from models.checkpoints.layout import CONFIG, SCHEDULER, WEIGHTS
from models.checkpoints.sources import pickles, tensors
from models.checkpoints.sources.folders import notes_of, open_folder
from models.checkpoints.sources.hub import open_repository
from models.checkpoints.sources.source import Source
from models.checkpoints.sources.trainers import (
    denoising_diffusion_pytorch,
    openai,
    pytorch_diffusion,
)


class _Trainer(Protocol):
    """What a module about a trainer's files has."""

    NAME: str

    def recognises(self, names: Iterable[str]) -> bool:
        """Tell by its names whether a file is of the trainer."""

    def write_folder(
        self, tensors: Mapping[str, Tensor], flags: str | None, folder: Path, /
    ) -> list[str]:
        """Write the model as a folder, and return what was assumed."""


_TRAINERS: tuple[_Trainer, ...] = (openai, pytorch_diffusion, denoising_diffusion_pytorch)
_REPOSITORY = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)


def open_source(
    thing: str, scratch: Path, revision: str | None = None, flags: str | None = None
) -> Source:
    """Make a model ready to be described.

    Args:
        thing: A folder, a file, or `owner/name` on the Hub.
        scratch: An empty folder for files that are fetched or put together.
        revision: A branch, tag or commit on the Hub.
        flags: The flags of the training, of a file of another trainer.

    Raises:
        BadCheckpoint: It is none of these, or it cannot be used. The text says why.
        OSError: A file cannot be read.
    """
    path = Path(thing)
    is_here = path.is_dir() or path.is_file()
    if is_here and revision is not None:
        raise BadCheckpoint(f"--revision is of a name on the Hub, and {path} is on this machine")
    if path.is_file():
        return _open_file(path, scratch, flags)
    if flags is not None:
        raise BadCheckpoint(f"--flags are of another trainer's file, and {thing} is no file")
    if is_here:
        return open_folder(path, scratch)
    if _REPOSITORY.fullmatch(thing) and ".." not in thing and not thing.startswith("."):
        return open_repository(thing, scratch, revision)
    raise BadCheckpoint(
        f"{thing} is no folder and no file here; give one, or owner/name of the Hub"
    )


def _open_file(path: Path, scratch: Path, flags: str | None) -> Source:
    if path.suffix not in (*pickles.SUFFIXES, ".safetensors"):
        raise BadCheckpoint(
            f"{path} is no file of weights; give a folder, or a file that ends in"
            f" {', '.join((*pickles.SUFFIXES, '.safetensors'))}"
        )
    if (path.parent / CONFIG).is_file():
        raise BadCheckpoint(f"{path} is part of a model; give its folder, {path.parent}")
    notes: list[str] = []
    held = _read_file(path, scratch, notes)
    trainer = next((trainer for trainer in _TRAINERS if trainer.recognises(held)), None)
    if trainer is None:
        raise BadCheckpoint(
            f"{path} comes without {CONFIG}, and its weights are none of"
            f" {', '.join(trainer.NAME for trainer in _TRAINERS)} (the first is"
            f" {next(iter(held), 'none')}); nothing says what network it is of"
        )
    made = scratch / "put-together"
    try:
        found = trainer.write_folder(held, flags, made)
    except BadCheckpoint as error:
        raise BadCheckpoint(f"{path}: {error}") from None
    notes += [f"converted from the names of {trainer.NAME}", *found]
    files = (made / "unet" / WEIGHTS, made / "unet" / CONFIG, made / "scheduler" / SCHEDULER, made)
    shown = {str(file): str(path) for file in files}
    return Source(made, str(path), f"imported from {path.name}", tuple(notes), shown=shown)


def _read_file(path: Path, scratch: Path, notes: list[str]) -> dict[str, Tensor]:
    file = path
    if path.suffix in pickles.SUFFIXES:
        file = scratch / "converted" / "0.safetensors"
        notes += notes_of(path.name, pickles.to_safetensors(path, file))
    held = tensors.merge({file: None})
    left, gone = tensors.without_prefixes(held)
    if gone:
        notes.append(f"before the names of the weights, {', '.join(gone)} was taken off")
    return {name: held[given] for given, name in left.items()}
