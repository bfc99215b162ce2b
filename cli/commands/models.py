"""`ddpm models`: lists the models that can be served, and adds to them."""

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
    """Print a table of the shipped and the added models.

    GFLOP is the cost of one step of one image, in 10^9 floating-point operations.

    Raises:
        Fault: A card cannot be used.
    """
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
        table.add_row(*_row(card, is_default=card.name == catalog.default.name))
    Console().print(table)


def _row(card: Card, is_default: bool) -> tuple[str, ...]:
    return (
        card.name,
        f"{card.shape.channels}x{card.shape.height}x{card.shape.width}",
        str(card.schedule.T),
        f"{card.parameters / 1e6:.2f}M",
        f"{card.gflop_per_image_step:.3g}",
        "yes" if is_default else "",
        card.licence,
    )


@dataclass(frozen=True, slots=True)
class CardOptions:
    """Fields of a card that the command's options give; None where an option is not given."""

    licence: str | None = None
    provenance: str | None = None
    data_name: str | None = None
    data_licence: str | None = None

    def data(self, known: DataCard) -> DataCard:
        """Return the card of the data, from the options and what is known.

        Another data set's licence and number of images are not those of the `known` one.
        """
        if self.data_name is not None:
            return DataCard(name=self.data_name, licence=self.data_licence or "unknown")
        return known.model_copy(update={"licence": self.data_licence or known.licence})


def add(folder: Path, name: str, options: CardOptions, default: bool) -> None:
    """Copy a model into the folder of added models and write its card.

    Nobody sees a model before it is whole: it is copied to a folder next to its place, and the last
    act is a rename.

    Args:
        folder: Model in diffusers' format.
        name: Its name in the catalog.
        options: Fields of its card; what they leave out comes from the folder's own card.
        default: Whether jobs that name no model get this one.

    Raises:
        Fault: The model, its name or a folder cannot be used.
    """
    root = read(CliSettings).models_root
    try:
        replaced = _defaults(root) if default else {}
        _install(folder, root, _describe(folder, name, options, default), replaced)
    except OSError as error:
        reason = error.strerror or error
        if error.filename:
            reason = f"{reason}: {error.filename}"
        raise Fault(
            f"{folder} cannot be added to {root} ({reason}); correct that, "
            "or name another folder with DDPM_MODELS_DIR"
        ) from None
    names = ", ".join(card.name for card in replaced.values())
    instead = f" as the default instead of {names}" if replaced else ""
    Console().print(
        f"added {name} to {root}{instead}; restart the service to serve it",
        soft_wrap=True,
        highlight=False,
    )


def _defaults(root: Path) -> dict[Path, Card]:
    """Return the cards below `root` that are marked default, by folder.

    They lose the mark, because the last of several in the alphabet would be the default.
    """
    try:
        cards = {path.parent: read_card(path.parent) for path in sorted(root.glob(f"*/{CARD}"))}
    except CatalogError as error:
        raise Fault(str(error)) from None
    return {folder: card for folder, card in cards.items() if card.default}


def _describe(folder: Path, name: str, options: CardOptions, default: bool) -> Card:
    """Make the card.

    Its figures are measured from the files. Its texts and its jobs' defaults come from the options,
    else from the folder's own card.
    """
    from models.checkpoints.card import make_card
    from models.checkpoints.diffusers_format import BadCheckpoint

    try:
        own = _own_card(folder)
        known_data = own.data if own else DataCard(name="unknown", licence="unknown")
        known_licence = own.licence if own else "unknown"
        known_provenance = own.provenance if own else f"imported from {folder.name}"
        return make_card(
            folder,
            name,
            data=options.data(known_data),
            licence=options.licence or known_licence,
            provenance=options.provenance or known_provenance,
            defaults=own.defaults if own else None,
            default=default,
        )
    except BadCheckpoint as error:
        raise Fault(str(error)) from None
    except ValidationError as error:
        first = error.errors()[0]
        reason = first["msg"].removeprefix("Value error, ")
        if first["loc"]:
            reason = f"{first['loc'][0]}={first['input']!r} cannot stand in a card: {reason}"
        raise Fault(reason) from None


def _own_card(folder: Path) -> Card | None:
    """Return the card that `ddpm train` wrote into the folder, if it is of these very weights."""
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
    """Copy the model to its place, with `card`.

    The cards in `replaced`, by their folders, lose their mark of the default.
    """
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
    """Copy what we and diffusers' pipeline read, and nothing else that may lie there."""
    for base in (Path(), Path("unet"), Path("scheduler")):
        for part in (base / name for name in _PARTS):
            if (folder / part).is_file():
                (target / part).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / part, target / part)
