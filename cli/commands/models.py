"""`ddpm models`: what can be served, and how a model comes in."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import typer
from pydantic import ValidationError
from rich import box
from rich.console import Console
from rich.table import Column, Table

from cli.faults import Fault
from cli.settings import CliSettings, read
from models.checkpoints.catalog import (
    CARD,
    SHIPPED,
    Card,
    Catalog,
    CatalogError,
    DataCard,
    read_card,
    sha256_of,
    write_card,
)

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
    table = Table(
        Column("name", no_wrap=True),
        "shape",
        "T",
        "parameters",
        "GFLOP",
        "default",
        "licence",
        box=box.SIMPLE,
    )
    for card in catalog.values():
        table.add_row(*_row(card, card.name == catalog.default.name))
    Console().print(table)


def _row(card: Card, default: bool) -> tuple[str, ...]:
    shape = f"{card.shape.channels}x{card.shape.height}x{card.shape.width}"
    size, cost = f"{card.parameters / 1e6:.2f}M", f"{card.gflop_per_image_step:.3g}"
    return (
        card.name,
        shape,
        str(card.schedule.T),
        size,
        cost,
        "yes" if default else "",
        card.licence,
    )


@dataclass(frozen=True, slots=True)
class Said:
    """What the command's options say of a model; None: nothing."""

    licence: str | None = None
    provenance: str | None = None
    data_name: str | None = None
    data_licence: str | None = None

    def data(self, known: DataCard) -> DataCard:
        """Another data set's licence and number of images are not those of the `known` one."""
        if self.data_name is not None:
            return DataCard(name=self.data_name, licence=self.data_licence or "unknown")
        return known.model_copy(update={"licence": self.data_licence or known.licence})


def add(folder: Path, name: str, said: Said, default: bool) -> None:
    """Nobody sees a model before it is whole: it is copied beside its place, and the last act is a rename."""
    root = read(CliSettings).models_root
    try:
        replaced = _defaults(root) if default else {}
        _install(folder, root, _describe(folder, name, said, default), replaced)
    except OSError as error:
        told = (
            f"{error.strerror or error}: {error.filename}"
            if error.filename
            else error.strerror or error
        )
        raise Fault(
            f"{folder} cannot be added to {root} ({told}); correct that, or name another folder with DDPM_MODELS_DIR"
        ) from None
    instead = (
        f" as the default instead of {', '.join(card.name for card in replaced.values())}"
        if replaced
        else ""
    )
    Console().print(
        f"added {name} to {root}{instead}; restart the service to serve it",
        soft_wrap=True,
        highlight=False,
    )


def _defaults(root: Path) -> dict[Path, Card]:
    """The folders below `root` whose card is marked default: the last of several would be it, whichever was added last."""
    try:
        cards = {path.parent: read_card(path.parent) for path in sorted(root.glob(f"*/{CARD}"))}
    except CatalogError as error:
        raise Fault(str(error)) from None
    return {folder: card for folder, card in cards.items() if card.default}


def _describe(folder: Path, name: str, said: Said, default: bool) -> Card:
    """Measured from the files; in words and defaults the folder's own card, where the options say nothing else."""
    from models.checkpoints.card import make_card
    from models.checkpoints.diffusers_format import BadCheckpoint

    try:
        own = _own_card(folder)
        return make_card(
            folder,
            name,
            data=said.data(own.data if own else DataCard(name="unknown", licence="unknown")),
            licence=said.licence or (own.licence if own else "unknown"),
            provenance=said.provenance
            or (own.provenance if own else f"imported from {folder.name}"),
            defaults=own.defaults if own else None,
            default=default,
        )
    except BadCheckpoint as error:
        raise Fault(str(error)) from None
    except ValidationError as error:
        first = error.errors()[0]
        told = (
            f"{first['loc'][0]}={first['input']!r} cannot stand in a card: " if first["loc"] else ""
        )
        raise Fault(f"{told}{first['msg'].removeprefix('Value error, ')}") from None


def _own_card(folder: Path) -> Card | None:
    """The folder's, as `ddpm train` writes it, where it is of these very weights."""
    from models.checkpoints.diffusers_format import network_files

    if not (folder / CARD).exists():
        return None
    try:
        card = read_card(folder)
    except CatalogError as error:
        typer.echo(f"not taken: {error}", err=True)
        return None
    if card.sha256 != sha256_of(network_files(folder)[1]):
        typer.echo(f"not taken: {folder / CARD} is of other weights", err=True)
        return None
    return card


def _install(folder: Path, root: Path, card: Card, replaced: Mapping[Path, Card]) -> None:
    """`replaced`: cards that are the default no longer, by folder."""
    target = root / card.name
    if target.exists():
        raise Fault(f"{target} exists; remove it, or choose another --name")
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".adding-") as scratch:
        copy = Path(scratch) / card.name
        _copy_parts(folder, copy)
        write_card(copy, card)
        for other, marked in replaced.items():
            write_card(other, marked.model_copy(update={"default": False}))
        copy.rename(target)


def _copy_parts(folder: Path, target: Path) -> None:
    """What we and diffusers' pipeline read, and nothing else that may lie there."""
    for base in (Path(), Path("unet"), Path("scheduler")):
        for part in (base / name for name in _PARTS):
            if (folder / part).is_file():
                (target / part).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / part, target / part)
