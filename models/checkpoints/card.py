"""The card of a model folder, made from its files: they are measured where they can be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from models.checkpoints import diffusers_format
from models.checkpoints.bad_checkpoint import BadCheckpoint
from models.checkpoints.catalog import (
    Card,
    ClassesCard,
    DataCard,
    Defaults,
    Shape,
    Timesteps,
    sha256_of,
)
from models.checkpoints.diffusers_format import Checkpoint, Description
from models.checkpoints.residual_variance import FILE, ResidualVariance
from models.networks.network import DenoisingNetwork
from models.networks.unet_config import UNetConfig


@dataclass(frozen=True, slots=True)
class StatedClasses:
    """What is stated of a network's classes; None where nothing is.

    Attributes:
        names: The name of each class, in the order of the embedding's rows.
        null: The embedding's row that means no class. It is never guessed.
    """

    names: tuple[str, ...] | None = None
    null: int | None = None


def make_card(
    folder: Path,
    name: str,
    *,
    data: DataCard,
    licence: str,
    provenance: str,
    defaults: Defaults | None = None,
    default: bool = False,
    timesteps: Timesteps | None = None,
    described: Description | None = None,
    classes: StatedClasses | None = None,
) -> Card:
    """Load a model folder, which checks it, and make its card.

    Args:
        folder: The model folder.
        name: The model's name.
        data: What it was trained on.
        licence: The licence of the weights.
        provenance: How the weights came to be.
        defaults: What jobs use by default. None: T steps of the variance that the folder names.
        default: Whether jobs that name no model use this one.
        timesteps: How timesteps are chosen. None: by linspace.
        described: What `diffusers_format.describe` found in the folder, with what was stated.
            None: it is read now.
        classes: What is stated of its classes. None: their names are those in the folder, if it
            has any, and no class is the null class.

    Raises:
        BadCheckpoint: The folder cannot be loaded, or its classes have no labels.
        ValueError: No URL can hold the name, or `defaults` does not fit the schedule.
    """
    described = described or diffusers_format.describe(folder)
    cfg, published = described.config, described.published
    found = _classes(described, classes or StatedClasses())
    loaded = diffusers_format.load_described(described)
    timesteps = timesteps or Timesteps()
    return Card(
        name=name,
        default=default,
        shape=Shape(channels=cfg.in_channels, height=cfg.height, width=cfg.width),
        schedule=published.card,
        prediction=published.process.prediction,
        timesteps=timesteps,
        learned_variance=published.process.learned_variance is not None,
        classes=found,
        defaults=defaults
        or Defaults(steps=_most_steps(published.card.T, timesteps), variance=published.variance),
        parameters=loaded.net.parameter_count(),
        gflop_per_image_step=round(gflop_per_image_step(loaded.net), 3),
        data=data,
        licence=licence,
        provenance=provenance,
        sha256=loaded.sha256,
        residual_variance=_residual_variance(described.folder, loaded),
    )


def _most_steps(T: int, timesteps: Timesteps) -> int:
    """Count the most steps that there are timesteps for."""
    return T - timesteps.offset if timesteps.spacing == "leading" else T


def _residual_variance(folder: Path, loaded: Checkpoint) -> str | None:
    """Hash the estimate for the analytic variance, if the folder has one."""
    found = ResidualVariance.find(folder, loaded.sha256, loaded.schedule.T)
    return sha256_of(folder / FILE) if found else None


def _classes(described: Description, stated: StatedClasses) -> ClassesCard | None:
    """Describe the classes of a conditional network.

    Raises:
        BadCheckpoint: No label can name them, or what is stated does not fit the network.
    """
    cfg, where = described.config, described.weights.parent
    if not isinstance(cfg, UNetConfig) or not cfg.is_conditional:
        if stated != StatedClasses():
            raise BadCheckpoint(f"{where}: the network takes no class labels; state no classes")
        return None
    names = stated.names or described.label_names
    rows = _rows(cfg, names, stated.null, where)
    if stated.null is not None and not 0 <= stated.null < rows:
        raise BadCheckpoint(
            f"{where}: --null-class {stated.null} is none of the {rows} rows of the class"
            f" embedding; give 0 to {rows - 1}"
        )
    count = rows - (stated.null is not None)
    if names is not None and len(names) != count:
        remedy = "give as many with --label-names"
        if stated.null is None and len(names) == rows - 1:
            remedy = (
                "perhaps a row means no class, mostly the last one; if so, give"
                f" --null-class {rows - 1}"
            )
        raise BadCheckpoint(f"{where}: {count} classes have {len(names)} names; {remedy}")
    try:
        return ClassesCard(count=count, names=names, null=stated.null)
    except ValidationError as error:
        fault = error.errors()[0]
        reason = fault["msg"].removeprefix("Value error, ")
        if fault["loc"]:
            reason = f"{'.'.join(map(str, fault['loc']))}={fault['input']!r}: {reason}"
        raise BadCheckpoint(f"{where}: the classes cannot stand in a card: {reason}") from None


def _rows(cfg: UNetConfig, names: tuple[str, ...] | None, null: int | None, where: Path) -> int:
    """Count the rows of the embedding of classes."""
    if cfg.class_embed_type == "identity":
        raise BadCheckpoint(
            f"{where}: class_embed_type='identity' takes a vector of {cfg.time_width} numbers for"
            " each image, which no label names; it is not served"
        )
    if cfg.class_embed_type == "timestep":
        if names is None:
            raise BadCheckpoint(
                f"{where}: class_embed_type='timestep' takes any number for a class, and nothing"
                " says how many there are; name them with --label-names"
            )
        return len(names) + (null is not None)
    assert cfg.num_class_embeds is not None
    return cfg.num_class_embeds


class _Arithmetic(TorchDispatchMode):
    """Counts floating-point operations by PyTorch's own rules, as its `FlopCounterMode` does.

    That one loads the compiler, which takes seconds.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0.0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep the compiler out: nothing is compiled under this mode."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if count := flop_registry.get(func.overloadpacket):
            self.operations += float(count(*args, **kwargs, out_val=out))
        return out


def gflop_per_image_step(net: DenoisingNetwork) -> float:
    """Count the GFLOP of one image's forward pass, two operations for each multiply-add.

    Convolutions, matrix products and attention count. Attention is computed from its products, as
    PyTorch has no rule for the kernels of some devices.
    """
    cfg = net.cfg
    weight = next(net.parameters())
    x = weight.new_zeros(1, *cfg.shape)
    number = torch.zeros(1, dtype=torch.long, device=x.device)
    label = number if cfg.is_conditional else None
    if isinstance(cfg, UNetConfig) and cfg.class_embed_type == "identity":
        label = x.new_zeros(1, cfg.time_width)
    arithmetic = _Arithmetic()
    with sdpa_kernel(SDPBackend.MATH), arithmetic, torch.no_grad():
        net(x, number, label)
    return arithmetic.operations / 1e9
