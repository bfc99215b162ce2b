"""The state of a training run on disk: everything that an exact resume needs.

It is one safetensors file, replaced atomically.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.checkpoints.atomic_files import flush
from models.networks.unet import UNet
from models.train.ema import EMA
from models.train.output import written

FILE = "state.safetensors"


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
        learning_rates: Those that it was run with, in order.
        losses: Readings: the update, and the mean loss since the reading before.
    """

    fingerprint: str
    precision: str
    update: int = 0
    seconds: float = 0.0
    data: str = ""
    learning_rates: list[float] = field(default_factory=list)
    losses: list[tuple[int, float]] = field(default_factory=list)


def save_state(
    folder: Path, counters: Counters, net: UNet, ema: EMA, optimizer: torch.optim.Optimizer
) -> None:
    """Replace the state on the disk.

    Raises:
        BadOutput: It cannot be written. The state that was there before still is.
    """
    tensors: dict[str, Tensor] = {f"net.{k}": v for k, v in net.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in ema.averages.items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in moments.items()}
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


def load_state(
    folder: Path, fingerprint: str, data: str, net: UNet, ema: EMA, optimizer: torch.optim.Optimizer
) -> Counters | None:
    """Load the state of a run into its network, averages and optimizer.

    Args:
        folder: The run's folder.
        fingerprint: What the state's fingerprint must be.
        data: What the identity of its images must be.
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
    if counters.data != data:
        raise BadState(
            f"{path} belongs to a run on other pictures than data.path has now;"
            " put those back, or begin anew in another --out"
        )
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
    try:
        with safe_open(path, framework="pt") as file:
            raw = json.loads(file.metadata()["counters"])
            # a safetensors file is no mapping
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return Counters(**{**raw, "losses": [tuple(entry) for entry in raw["losses"]]}), tensors
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BadState(
            f"{path} cannot be read as the state of a run ({error});"
            " restore it, or remove it to begin anew"
        ) from None


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
