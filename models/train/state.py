"""The state of a training run on disk: everything that an exact resume needs.

It is one safetensors file, replaced atomically.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.checkpoints.atomic_files import flush
from models.checkpoints.catalog import ClassesCard
from models.networks.unet import UNet
from models.train.data.images import Images
from models.train.ema import EMA
from models.train.output import written

FILE = "state.safetensors"
_NAMES = "data.names"
# the warm-up of runs whose state does not say it
OLD_WARMUP_UPDATES = 5000


class BadState(Exception):
    """The saved state cannot be read, or is of another run; the text says why and what to do."""


@dataclass(slots=True)
class Counters:
    """The progress of a run.

    Attributes:
        fingerprint: A hash of what must not change during the run.
        precision: What it computes in.
        update: Updates done.
        seconds: Seconds spent on them.
        data: The identity of its images.
        warmup_updates: Updates in which the learning rate rises, where the recipe does not say.
        validation: Readings of the loss on held-out images: the update, and the loss.
        began_from: sha256 of the weights that it went on from; empty where they were random.
        began_from_name: The name of that model.
        classes: What its labels name, as the card has it; None without classes.
        threads: Those of the CPU that it computes with; 0 on another device.
        learning_rates: Those that it was run with, in order.
        losses: Readings: the update, and the mean loss since the reading before.
    """

    fingerprint: str
    precision: str
    update: int = 0
    seconds: float = 0.0
    data: str = ""
    threads: int = 0
    warmup_updates: int = OLD_WARMUP_UPDATES
    validation: list[tuple[int, float]] = field(default_factory=list)
    began_from: str = ""
    began_from_name: str = ""
    classes: dict[str, Any] | None = None
    learning_rates: list[float] = field(default_factory=list)
    losses: list[tuple[int, float]] = field(default_factory=list)


def save_state(
    folder: Path,
    counters: Counters,
    names: Sequence[str],
    net: UNet,
    ema: EMA,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Replace the state on the disk.

    Args:
        folder: The run's folder.
        counters: Its counters.
        names: Names of its images, in order.
        net: Its network.
        ema: The averages of its weights.
        optimizer: Its optimizer.

    Raises:
        BadOutput: It cannot be written. The state that was there before still is.
    """
    tensors: dict[str, Tensor] = {f"net.{k}": v for k, v in net.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in ema.averages.items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in moments.items()}
    if names:
        tensors[_NAMES] = torch.frombuffer(bytearray(_joined(names)), dtype=torch.uint8)
    partial = folder / f"{FILE}.partial"
    metadata = {"counters": json.dumps(asdict(counters))}
    try:
        with written(folder / FILE):
            on_host = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
            save_file(on_host, partial, metadata)
            flush(partial)
            partial.replace(folder / FILE)
    finally:
        partial.unlink(missing_ok=True)


def read_names(folder: Path) -> list[str] | None:
    """Read the names of the images that a run began with, in order; None where none are saved.

    Raises:
        BadState: The state is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return None
    with _readable(path), safe_open(path, framework="pt") as file:
        if _NAMES not in file.keys():  # noqa: SIM118
            return None
        raw: bytes = file.get_tensor(_NAMES).numpy().tobytes()
    return raw.decode(errors="surrogateescape").split("\0")


def read_classes(folder: Path) -> ClassesCard | None:
    """Read the classes that the run of this folder learns; None without classes, or a run.

    Raises:
        BadState: The state is damaged.
    """
    counters = _read_counters(folder)
    if counters is None or counters.classes is None:
        return None
    with _readable(folder / FILE):
        return ClassesCard.model_validate(counters.classes)


def read_identity(folder: Path) -> str | None:
    """Read the identity of the images that the run of this folder trains on; None without a run.

    Raises:
        BadState: The state is damaged.
    """
    counters = _read_counters(folder)
    return None if counters is None else counters.data


def load_state(
    folder: Path,
    fingerprint: str,
    images: Images,
    net: UNet,
    ema: EMA,
    optimizer: torch.optim.Optimizer,
) -> Counters | None:
    """Load the state of a run into its network, averages and optimizer.

    Args:
        folder: The run's folder.
        fingerprint: What the state's fingerprint must be.
        images: What it goes on with.
        net: Its network.
        ema: The averages of its weights.
        optimizer: Its optimizer.

    Returns:
        The run's counters, or None if nothing is saved.

    Raises:
        BadState: The state is damaged, or is of another recipe's run, or of one on other data.
    """
    path = folder / FILE
    if not path.exists():
        return None
    counters, tensors = _read(path)
    if counters.fingerprint != fingerprint:
        raise BadState(
            f"{path} belongs to a run with another recipe;"
            " use another --out, or remove it to begin anew"
        )
    if not images.goes_on_from(counters.data):
        raise BadState(
            f"{path} belongs to a run on other pictures than data.path has now;"
            " put those back, or begin anew in another --out"
        )
    counters.data = images.identity
    net.load_state_dict(_part(tensors, "net."))
    for name, average in _part(tensors, "ema.").items():
        ema.averages[name].copy_(average)
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _part(tensors, "optimizer.").items():
        index, key = name.split(".")
        moments.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    # Fused Adam wants its moments laid out as the parameter is. On the disk all are contiguous.
    for p, state in optimizer.state.items():
        of_its_shape = {name: v for name, v in state.items() if v.shape == p.shape}
        state.update({name: torch.empty_like(p).copy_(v) for name, v in of_its_shape.items()})
    return counters


def _read(path: Path) -> tuple[Counters, dict[str, Tensor]]:
    with _readable(path), safe_open(path, framework="pt") as file:
        # a safetensors file is no mapping
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _counters(file.metadata()), tensors


def _counters(metadata: dict[str, str]) -> Counters:
    raw = json.loads(metadata["counters"])
    for readings in ("losses", "validation"):
        raw[readings] = [tuple(entry) for entry in raw.get(readings, [])]
    return Counters(**raw)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn errors of reading into BadState."""
    try:
        yield
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BadState(
            f"{path} cannot be read as the state of a run ({error});"
            " restore it, or remove it to begin anew"
        ) from None


def _joined(names: Sequence[str]) -> bytes:
    return "\0".join(names).encode(errors="surrogateescape")


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _read_counters(folder: Path) -> Counters | None:
    path = folder / FILE
    if not path.exists():
        return None
    with _readable(path), safe_open(path, framework="pt") as file:
        return _counters(file.metadata())
