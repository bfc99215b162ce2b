"""The card of a model folder, made from its files: they are measured where they can be."""

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
    """Load a model folder, which checks it, and describe it.

    Args:
        folder: The model folder.
        name: The model's name.
        data: What it was trained on.
        licence: The licence of the weights.
        provenance: How the weights came to be.
        defaults: What jobs use by default. None: T steps of the variance that the folder names.
        default: Whether jobs that name no model use this one.

    Raises:
        BadCheckpoint: The folder cannot be loaded.
        ValueError: No URL can hold the name, or `defaults` does not fit the schedule.
    """
    loaded = diffusers_format.load(folder)
    schedule, prediction = diffusers_format.read_scheduler(folder)
    variance = diffusers_format.read_variance(folder)
    cfg = loaded.net.cfg
    return Card(
        name=name,
        default=default,
        shape=Shape(channels=cfg.in_channels, height=cfg.sample_size, width=cfg.sample_size),
        schedule=schedule,
        prediction=prediction,
        defaults=defaults or Defaults(steps=schedule.T, variance=variance),
        parameters=loaded.net.parameter_count(),
        gflop_per_image_step=round(gflop_per_image_step(loaded.net), 3),
        data=data,
        licence=licence,
        provenance=provenance,
        sha256=loaded.sha256,
        residual_variance=_residual_variance(folder, loaded),
    )


def _residual_variance(folder: Path, loaded: diffusers_format.Checkpoint) -> str | None:
    """Hash the estimate for the analytic variance, if the folder has one."""
    found = ResidualVariance.find(folder, loaded.sha256, loaded.schedule.T)
    return sha256_of(folder / FILE) if found else None


def gflop_per_image_step(net: UNet) -> float:
    """Count the GFLOP of one image's forward pass, two operations for each multiply-add.

    Convolutions, matrix products and attention count. The pass runs on the meta device, as the
    counter does not know the CPU's attention kernel, and would leave attention out.
    """
    cfg = net.cfg
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        x = torch.zeros(1, cfg.in_channels, cfg.sample_size, cfg.sample_size)
        UNet(cfg).eval()(x, torch.zeros(1, dtype=torch.long))
    return float(counter.get_total_flops()) / 1e9
