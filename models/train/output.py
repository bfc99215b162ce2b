"""The folder that a training run writes to, checked so that no file of the user's is replaced.

The run must not train on its own images either.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from models.checkpoints.catalog import CARD

STAGING = ".export"
# suffixes of the run's own files, which lie next to the model
_FILES = (".safetensors", ".partial", ".png", ".csv", ".toml")


class BadOutput(Exception):
    """The run cannot write there; the text names the folder and the remedy."""


def check_output(out: Path, name: str, data: Path) -> None:
    """Check that a run may write to `out`.

    Args:
        out: The run's folder.
        name: The model's name, and that of its folder in `out`.
        data: What the run trains on.

    Raises:
        BadOutput: The run would replace what is not its own, or find its own images in `data`.
    """
    model = out / name
    if out.exists() and not out.is_dir():
        raise BadOutput(f"{out} is a file; name a folder with --out")
    if name.endswith(_FILES):
        raise BadOutput(
            f"card.name={name!r} may be a file of the run itself;"
            f" give the model a name without {Path(name).suffix}"
        )
    if data.is_dir() and _within(out, data):
        raise BadOutput(
            f"{out} lies in the data {data}, where the run's own pictures would be trained on;"
            " name another --out"
        )
    if any(_within(data, replaced) for replaced in (model, out / STAGING)):
        raise BadOutput(
            f"{data} is the data, and lies where the run puts its model {name!r};"
            " name another --out, or card.name"
        )
    if (model.exists() or model.is_symlink()) and not (model / CARD).is_file():
        raise BadOutput(
            f"{model} is where the model goes, and holds no {CARD};"
            " move what is there, or name another --out"
        )


def make_output(out: Path) -> None:
    """Make the run's folder.

    Raises:
        BadOutput: It cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadOutput(
            f"{out} cannot be made ({error.strerror}); name another folder with --out"
        ) from None


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Turn errors of writing into BadOutput, as a full disk is no bug.

    Whatever was saved before must still be there.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        remedy = (
            "make room, and run the same command again:"
            " it goes on from the state that was saved last"
        )
        raise BadOutput(f"{path} cannot be written ({error}); {remedy}") from None


def _within(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())
