"""The export of a training run, as a model folder that the service and diffusers read.

It holds the averaged weights and their card.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from models.checkpoints import diffusers_format
from models.checkpoints.atomic_files import flush
from models.checkpoints.bad_checkpoint import BadCheckpoint
from models.checkpoints.card import StatedClasses, make_card
from models.checkpoints.catalog import CARD, CatalogError, read_card, sha256_of, write_card
from models.checkpoints.residual_variance import FILE, ResidualVariance
from models.train.classes import names_in_card
from models.train.output import STAGING, check_output, written
from models.train.trainer import Trainer


def export(trainer: Trainer) -> Path:
    """Write <out>/<name>/ with the averaged weights as they are now, and return the folder.

    No reader sees it half-written.

    Raises:
        BadOutput: The folder cannot be written, or is not this run's.
        BadCheckpoint: The folder that was written cannot be loaded.
    """
    recipe = trainer.recipe
    finished = trainer.out / recipe.card.name
    staging = trainer.out / STAGING
    check_output(trainer.out, recipe.card.name, recipe.data.path)
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with written(finished):
            folder = _stage(trainer, staging)
            if not (trainer.made == 0 and _is_there(finished, folder)):
                _replace(finished, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return finished


def _stage(trainer: Trainer, staging: Path) -> Path:
    """Write the whole folder, and copy what was estimated for the same weights."""
    recipe = trainer.recipe
    finished = trainer.out / recipe.card.name
    folder = staging / recipe.card.name
    classes = trainer.classes
    process = recipe.schedule, recipe.prediction, recipe.defaults.variance
    weights = diffusers_format.save(folder, trainer.net.cfg, trainer.ema.averages, *process)
    # BadCheckpoint: the estimate is of other weights.
    with suppress(BadCheckpoint):
        if ResidualVariance.find(finished, weights, recipe.schedule.T):
            shutil.copy(finished / FILE, folder)
    card = make_card(
        folder,
        recipe.card.name,
        data=recipe.data_card(len(trainer.images)),
        licence=recipe.card.licence,
        provenance=provenance(trainer),
        defaults=recipe.defaults,
        default=recipe.card.default,
        classes=StatedClasses(names_in_card(recipe, classes), classes.null) if classes else None,
    )
    write_card(folder, card)
    return folder


def _is_there(finished: Path, folder: Path) -> bool:
    """Tell whether the finished folder has the same files, and the same card but for provenance."""
    try:
        found = read_card(finished)
        card = read_card(folder)
        others = [path for path in _files(folder) if path.name != CARD]
        finished_others = [finished / path.relative_to(folder) for path in others]
        pairs = zip(finished_others, others, strict=True)
        same = all(sha256_of(there) == sha256_of(path) for there, path in pairs)
    except (CatalogError, OSError):
        return False
    return same and found == card.model_copy(update={"provenance": found.provenance})


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _replace(finished: Path, folder: Path) -> None:
    replaced = folder.with_name(".replaced")
    for path in _files(folder):
        flush(path)
    try:
        if finished.exists():
            finished.rename(replaced)
        folder.rename(finished)
    # Ctrl-C as well: the replaced folder lies in the staging folder, which will be removed.
    except BaseException:
        if replaced.exists() and not finished.exists():
            replaced.rename(finished)
        raise


def duration(seconds: float) -> str:
    """Say how long something took, in the unit that shows it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def provenance(trainer: Trainer) -> str:
    """Say in one honest sentence how long the run was, on what, and with which settings."""
    counters, options = trainer.counters, trainer.recipe.training
    images = counters.update * options.batch_size
    rates = ", then ".join(f"{rate:g}" for rate in counters.learning_rates)
    losses = counters.losses
    loss = f"; loss {losses[-1][1]:.4f}" if losses else ""
    origin = "trained from scratch"
    if counters.began_from:
        origin = f"fine-tuned from {counters.began_from_name} ({counters.began_from[:12]})"
    return (
        f"{origin} by `ddpm train` for {counters.update} updates"
        f" of batch {options.batch_size} ({images} images)"
        f" in {duration(counters.seconds)} on {trainer.device.type} in {counters.precision},"
        f" Adam {rates}, seed {options.seed};"
        f" these are the averaged weights (EMA){loss}"
    )
