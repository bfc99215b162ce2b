"""The state of a training run on disk: all that an exact resume needs, in one safetensors file, replaced atomically."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.train.ema import EMA
from models.unet import UNet

FILE = "state.safetensors"


class BadState(Exception):
    """The saved state does not belong to this run; the text says why and what to do."""


@dataclass(slots=True)
class Counters:
    """Where the run stands. `losses` holds (update, mean loss since the entry before)."""

    fingerprint: str
    precision: str
    update: int = 0
    seconds: float = 0.0
    losses: list[tuple[int, float]] = field(default_factory=list)


def save_state(folder: Path, counters: Counters, net: UNet, ema: EMA, optimizer: torch.optim.Optimizer) -> None:
    tensors: dict[str, Tensor] = {f"net.{k}": v for k, v in net.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in ema.averages.items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in moments.items()}
    partial = folder / f"{FILE}.partial"
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, partial, {"counters": json.dumps(asdict(counters))})
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(folder / FILE)


def load_state(folder: Path, fingerprint: str, net: UNet, ema: EMA, optimizer: torch.optim.Optimizer) -> Counters | None:
    """Continue from `folder`, None where nothing is saved. Raises BadState for another recipe's run."""
    path = folder / FILE
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as file:
        raw = json.loads(file.metadata()["counters"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    if raw["fingerprint"] != fingerprint:
        raise BadState(f"{path} belongs to a run with another recipe; use another --out, or remove it to begin anew")
    net.load_state_dict(_part(tensors, "net."))
    for name, average in _part(tensors, "ema.").items():
        ema.averages[name].copy_(average)
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _part(tensors, "optimizer.").items():
        index, key = name.split(".")
        moments.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return Counters(**{**raw, "losses": [tuple(entry) for entry in raw["losses"]]})


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
