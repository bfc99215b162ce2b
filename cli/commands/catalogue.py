"""`ddpm models show | check | remove`: one model of the catalog."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from cli.faults import Fault
from cli.settings import CliSettings, read
from models.checkpoints.added.kept import keep
from models.checkpoints.added.scratch import remove_ownerless, scratch_folder
from models.checkpoints.catalog import SHIPPED, Card, Catalog, CatalogError
from models.checkpoints.layout import SAMPLES


def show_card(name: str) -> None:
    """Print a model's card, and where its sheet of samples lies, if it has one.

    Raises:
        Fault: There is no such model.
    """
    catalog = _catalog()
    typer.echo(_named(catalog, name).model_dump_json(indent=2))
    samples = catalog.folder(name) / SAMPLES
    # not in the JSON, which is the card
    if samples.exists():
        typer.echo(f"samples: {samples}", err=True)


def check(names: Sequence[str]) -> None:
    """Load models, compare their hashes, and run each network once.

    Args:
        names: The models. Empty: all.

    Raises:
        Fault: One cannot be served.
    """
    catalog = _catalog()
    cards = [_named(catalog, name) for name in names] or list(catalog.values())
    faulty = []
    for card in cards:
        fault = _fault_of(card, catalog.folder(card.name))
        typer.echo(f"{card.name}: {fault or 'can be served'}")
        if fault:
            faulty.append(card.name)
    if faulty:
        raise Fault(f"{len(faulty)} of {len(cards)} models cannot be served: {', '.join(faulty)}")


def _fault_of(card: Card, folder: Path) -> str:
    """Return what keeps a model from being served, or nothing."""
    import torch

    from models.checkpoints.bad_checkpoint import BadCheckpoint
    from models.checkpoints.diffusers_format import load

    defaults = card.defaults
    try:
        loaded = load(folder, card.sha256)
        loaded.process.plan(
            defaults.steps, defaults.sampler, variance=defaults.variance, eta=defaults.eta
        )
    except (BadCheckpoint, ValueError) as error:
        return str(error)
    with torch.inference_mode():
        t = torch.tensor([card.schedule.T - 1])
        drawn = torch.randn(1, *loaded.net.cfg.shape, generator=torch.Generator().manual_seed(0))
        label = torch.zeros(1, dtype=torch.long) if card.classes else None
        out = loaded.net(drawn, t, label)
    if not bool(torch.isfinite(out).all()):
        return "its network returns NaN or infinity; the training diverged"
    return ""


def remove(name: str, force: bool) -> None:
    """Remove an added model.

    It vanishes at once, by a rename. Its files are kept for the jobs that were accepted, and a
    worker deletes them when no open job needs them.

    Args:
        name: The model's.
        force: Whether its files go now. Jobs that are not done then fail.

    Raises:
        Fault: There is no such model, or it is one that has to stay.
    """
    root = read(CliSettings).models_root
    catalog = _catalog()
    card = _named(catalog, name)
    folder = catalog.folder(name)
    if folder.parent.resolve() != root.resolve():
        raise Fault(
            f"{name} is shipped with the package, and cannot be removed; DDPM_MODELS names the"
            " models that workers serve"
        )
    if card.name == catalog.default.name:
        raise Fault(
            f"{name} is the default, which jobs that name no model get; add another one with"
            " --default first"
        )
    try:
        if force:
            with scratch_folder(root) as scratch:
                folder.rename(scratch / name)
        else:
            keep(folder)
        remove_ownerless(root)
    except OSError as error:
        raise Fault(f"{folder} cannot be removed ({error.strerror or error})") from None
    typer.echo(f"removed {name} from {root}")
    if force:
        typer.echo("jobs of it that are not done fail, and say that its weights are gone")
    else:
        typer.echo("accepted jobs of it end first; then a worker deletes its files")


def _catalog() -> Catalog:
    try:
        return Catalog.read(SHIPPED, read(CliSettings).models_root)
    except CatalogError as error:
        raise Fault(str(error)) from None


def _named(catalog: Catalog, name: str) -> Card:
    if name not in catalog:
        raise Fault(f"there is no model {name!r}; there are {', '.join(sorted(catalog))}")
    return catalog[name]
