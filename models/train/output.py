"""The folder that a training run writes to: what it may be, so that nothing of the user's is replaced or trained on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from models.checkpoints.catalog import CARD

STAGING = ".export"
_FILES = (".safetensors", ".partial", ".png")  # of the run itself, beside the model


class BadOutput(Exception):
    """The run cannot write there; the text names the folder and the remedy."""


def check_output(out: Path, name: str, data: Path) -> None:
    """Raises BadOutput where a run that writes to `out` would replace what is not its own, or find its pictures in `data`."""
    model = out / name
    if out.exists() and not out.is_dir():
        raise BadOutput(f"{out} is a file; name a folder with --out")
    if name.endswith(_FILES):
        raise BadOutput(
            f"card.name={name!r} may be a file of the run itself; give the model a name without {Path(name).suffix}"
        )
    if data.is_dir() and _within(out, data):
        raise BadOutput(
            f"{out} lies in the data {data}, where the run's own pictures would be trained on; name another --out"
        )
    if any(_within(data, replaced) for replaced in (model, out / STAGING)):
        raise BadOutput(
            f"{data} is the data, and lies where the run puts its model {name!r}; name another --out, or card.name"
        )
    if (model.exists() or model.is_symlink()) and not (model / CARD).is_file():
        raise BadOutput(
            f"{model} is where the model goes, and holds no {CARD}; move what is there, or name another --out"
        )


def make_output(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadOutput(
            f"{out} cannot be made ({error.strerror}); name another folder with --out"
        ) from None


@contextmanager
def written(path: Path) -> Iterator[None]:
    """A full disk is no bug: what was saved before is still there."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        remedy = "make room, and run the same command again: it goes on from the state that was saved last"
        raise BadOutput(f"{path} cannot be written ({error}); {remedy}") from None


def _within(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())
