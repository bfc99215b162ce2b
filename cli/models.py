"""`ddpm models`: what can be served, and how a model comes in."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from pydantic import ValidationError
from rich import box
from rich.console import Console
from rich.table import Column, Table

from cli.faults import Fault
from cli.settings import CliSettings, read
from models.catalog import SHIPPED, Card, Catalog, CatalogError, DataCard, write_card

_PARTS = (
    "model_index.json",
    "config.json",
    "scheduler_config.json",
    "diffusion_pytorch_model.safetensors",
    "residual_variance.json",
)


def show() -> None:
    """A table of the shipped and the added models; GFLOP is the cost of one step of one image."""
    try:
        catalog = Catalog.read(SHIPPED, read(CliSettings).models_root)
    except CatalogError as error:
        raise Fault(str(error)) from None
    table = Table(Column("name", no_wrap=True), "shape", "T", "parameters", "GFLOP", "default", "licence", box=box.SIMPLE)
    for card in catalog.values():
        table.add_row(*_row(card, card.name == catalog.default.name))
    Console().print(table)


def _row(card: Card, default: bool) -> tuple[str, ...]:
    shape = f"{card.shape.channels}x{card.shape.height}x{card.shape.width}"
    size, cost = f"{card.parameters / 1e6:.2f}M", f"{card.gflop_per_image_step:.3g}"
    return card.name, shape, str(card.schedule.T), size, cost, "yes" if default else "", card.licence


def add(folder: Path, name: str, data: DataCard, licence: str, provenance: str, default: bool) -> None:
    """Nobody sees a model before it is whole: it is copied beside its place, and the last act is a rename."""
    from models.card import make_card
    from models.checkpoint import BadCheckpoint

    try:
        card = make_card(folder, name, data=data, licence=licence, provenance=provenance, default=default)
    except BadCheckpoint as error:
        raise Fault(str(error)) from None
    except ValidationError as error:
        first = error.errors()[0]
        told = f"{first['loc'][0]}={first['input']!r} cannot stand in a card: " if first["loc"] else ""
        raise Fault(f"{told}{first['msg'].removeprefix('Value error, ')}") from None
    root = read(CliSettings).models_root
    target = root / card.name
    if target.exists():
        raise Fault(f"{target} exists; remove it, or choose another --name")
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".adding-") as scratch:
        copy = Path(scratch) / card.name
        _copy_parts(folder, copy)
        write_card(copy, card)
        copy.rename(target)
    Console().print(f"added {card.name} to {root}; restart the service to serve it", soft_wrap=True, highlight=False)


def _copy_parts(folder: Path, target: Path) -> None:
    """What we and diffusers' pipeline read, and nothing else that may lie there."""
    for base in (Path(), Path("unet"), Path("scheduler")):
        for part in (base / name for name in _PARTS):
            if (folder / part).is_file():
                (target / part).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / part, target / part)
