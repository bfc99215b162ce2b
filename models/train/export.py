"""From a training run to a model folder that the service and diffusers read: the averaged weights and their card."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from models.checkpoints import diffusers_format
from models.checkpoints.atomic_files import flush
from models.checkpoints.card import make_card
from models.checkpoints.catalog import CARD, CatalogError, read_card, sha256_of, write_card
from models.checkpoints.diffusers_format import BadCheckpoint
from models.checkpoints.residual_variance import FILE, ResidualVariance
from models.train.output import STAGING, check_output, written
from models.train.trainer import Trainer


def export(trainer: Trainer) -> Path:
    """Write <out>/<name>/ with the EMA weights as they are now; the folder is returned. Nobody sees it half-written."""
    recipe, finished, staging = (
        trainer.recipe,
        trainer.out / trainer.recipe.card.name,
        trainer.out / STAGING,
    )
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
    """The whole folder, and what was estimated for the same weights."""
    recipe, finished = trainer.recipe, trainer.out / trainer.recipe.card.name
    folder = staging / recipe.card.name
    process = recipe.schedule, recipe.prediction, recipe.card.defaults.variance
    weights = diffusers_format.save(folder, recipe.network, trainer.ema.averages, *process)
    with suppress(BadCheckpoint):  # of other weights
        if ResidualVariance.find(finished, weights, recipe.schedule.T):
            shutil.copy(finished / FILE, folder)
    card = make_card(
        folder,
        recipe.card.name,
        data=recipe.data_card(len(trainer.images)),
        licence=recipe.card.licence,
        provenance=provenance(trainer),
        defaults=recipe.card.defaults,
        default=recipe.card.default,
    )
    write_card(folder, card)
    return folder


def _is_there(finished: Path, folder: Path) -> bool:
    """Whether the finished folder has these files, whole, and says the same of them, but for how they came to be."""
    try:
        found, card = read_card(finished), read_card(folder)
        others = [path for path in _files(folder) if path.name != CARD]
        same = all(
            sha256_of(finished / path.relative_to(folder)) == sha256_of(path) for path in others
        )
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
    except BaseException:  # Ctrl-C too: what lies beside the new folder is removed
        if replaced.exists() and not finished.exists():
            replaced.rename(finished)
        raise


def provenance(trainer: Trainer) -> str:
    """One honest sentence: how long, on what, with which settings."""
    counters, options = trainer.counters, trainer.recipe.training
    images = counters.update * options.batch_size
    rates = ", then ".join(f"{rate:g}" for rate in counters.learning_rates)
    loss = f"; loss {recent:.4f}" if (recent := trainer.recent_loss) is not None else ""
    return (
        f"trained from scratch by `ddpm train` for {counters.update} updates of batch {options.batch_size} ({images} images) in "
        f"{counters.seconds / 3600:.1f} h on {trainer.device.type} in {counters.precision}, Adam {rates}, "
        f"seed {options.seed}; these are the averaged weights (EMA){loss}"
    )
