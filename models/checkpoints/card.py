"""Writing the card of a model folder: what can be measured is measured from the files."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from models.checkpoints import diffusers_format
from models.checkpoints.catalog import Card, DataCard, Defaults, Shape, sha256_of
from models.checkpoints.residual_variance import FILE, ResidualVariance
from models.networks.unet import UNet


def make_card(
    folder: Path,
    name: str,
    *,
    data: DataCard,
    licence: str,
    provenance: str,
    defaults: Defaults | None = None,
    default: bool = False,
) -> Card:
    """Load the folder, which checks it, and describe it. Raises BadCheckpoint, and ValueError for a name that no URL can hold."""
    loaded = diffusers_format.load(folder)
    schedule, prediction = diffusers_format.read_scheduler(folder)
    cfg = loaded.net.cfg
    return Card(
        name=name,
        default=default,
        shape=Shape(channels=cfg.in_channels, height=cfg.sample_size, width=cfg.sample_size),
        schedule=schedule,
        prediction=prediction,
        defaults=defaults
        or Defaults(steps=schedule.T, variance=diffusers_format.read_variance(folder)),
        parameters=loaded.net.parameter_count(),
        gflop_per_image_step=round(gflop_per_image_step(loaded.net), 3),
        data=data,
        licence=licence,
        provenance=provenance,
        sha256=loaded.sha256,
        residual_variance=_residual_variance(folder, loaded),
    )


def _residual_variance(folder: Path, loaded: diffusers_format.Checkpoint) -> str | None:
    """The sha256 of the estimate that may lie there."""
    found = ResidualVariance.find(folder, loaded.sha256, loaded.schedule.T)
    return sha256_of(folder / FILE) if found else None


def gflop_per_image_step(net: UNet) -> float:
    """Forward pass of one image, two operations a multiply-add; convolutions, matrix products and attention counted.

    On the meta device: the counter does not know the CPU's attention kernel and leaves it out.
    """
    cfg = net.cfg
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        x = torch.zeros(1, cfg.in_channels, cfg.sample_size, cfg.sample_size)
        UNet(cfg).eval()(x, torch.zeros(1, dtype=torch.long))
    return float(counter.get_total_flops()) / 1e9
