"""From a training run to a model folder that the service and diffusers read: the averaged weights and their card."""

from __future__ import annotations

import shutil
from pathlib import Path

from models import checkpoint
from models.card import make_card
from models.catalog import write_card
from models.train.trainer import Trainer


def export(trainer: Trainer) -> Path:
    """Write <out>/<name>/ with the EMA weights as they are now; the folder is returned. Nobody sees it half-written."""
    recipe = trainer.recipe
    finished, staging = trainer.out / recipe.card.name, trainer.out / ".export"
    shutil.rmtree(staging, ignore_errors=True)
    folder = staging / recipe.card.name
    checkpoint.save(folder, recipe.network, trainer.ema.averages, recipe.schedule, recipe.prediction)
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
    if finished.exists():
        finished.rename(staging / "replaced")
    folder.rename(finished)
    shutil.rmtree(staging)
    return finished


def provenance(trainer: Trainer) -> str:
    """One honest sentence: how long, on what, with which settings."""
    counters, options = trainer.counters, trainer.recipe.training
    images = counters.update * options.batch_size
    loss = f"; loss {recent:.4f}" if (recent := trainer.recent_loss) is not None else ""
    return (
        f"trained from scratch by `ddpm train` for {counters.update} updates of batch {options.batch_size} ({images} images) in "
        f"{counters.seconds / 3600:.1f} h on {trainer.device.type} in {counters.precision}, Adam {options.learning_rate:g}, "
        f"seed {options.seed}; these are the averaged weights (EMA){loss}"
    )
