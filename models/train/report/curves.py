"""The loss of a training run while it runs, as a curve and as a table."""

from __future__ import annotations

from pathlib import Path

from models.checkpoints.atomic_files import write_whole
from models.train.output import written
from models.train.trainer import Trainer


def draw_loss(trainer: Trainer) -> Path:
    """Write <out>/loss.png: the mean loss between readings, and over ten, on logarithmic axes.

    Raises:
        BadOutput: The file cannot be written.
    """
    # matplotlib is in the train extra, and only plots need it
    from matplotlib.figure import Figure

    updates = [update for update, _ in trainer.counters.losses]
    losses = [loss for _, loss in trainer.counters.losses]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.loglog(updates, losses, color="0.8", label="between readings")
    tens = [losses[max(0, i - 9) : i + 1] for i in range(len(losses))]
    smooth = [sum(ten) / len(ten) for ten in tens]
    axes.loglog(updates, smooth, color="C0", label="mean of ten")
    if trainer.counters.validation:
        axes.loglog(*zip(*trainer.counters.validation, strict=True), "C1.-", label="held out")
    axes.set(xlabel="updates", ylabel="L_simple", title=trainer.recipe.card.name)
    axes.legend()
    path = trainer.out / "loss.png"
    with written(path):
        figure.savefig(path, dpi=110)
    return path


def write_losses(trainer: Trainer) -> Path:
    """Write <out>/losses.csv: every reading, with the validation loss where one was measured.

    Raises:
        BadOutput: The file cannot be written.
    """
    counters = trainer.counters
    readings: dict[int, list[str]] = {}
    for column, losses in enumerate((counters.losses, counters.validation)):
        for update, loss in losses:
            readings.setdefault(update, ["", ""])[column] = f"{loss:.6g}"
    rows = [f"{update},{','.join(readings[update])}\n" for update in sorted(readings)]
    path = trainer.out / "losses.csv"
    with written(path):
        write_whole(path, f"update,loss,validation_loss\n{''.join(rows)}".encode())
    return path
