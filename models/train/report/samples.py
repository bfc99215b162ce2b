"""A sheet of samples of a training run while it runs, as a PNG."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.checkpoints import scheduler_config
from models.checkpoints.catalog import ClassesCard
from models.checkpoints.images import sheet
from models.diffusion.plans import compile_plan
from models.diffusion.sampling import sample, to_bytes
from models.networks.memory import is_out_of_memory
from models.train.output import written
from models.train.precision import autocast
from models.train.trainer import Trainer

SHEET_IMAGES = 64
SHEET_SEED = 0
# of a sheet by class
_MOST_ROWS, _MOST_COLUMNS = 16, 8


@dataclass(frozen=True, slots=True)
class _ByClass:
    """A sheet with a class in each row.

    Attributes:
        rows: The embedding's row of each image, int64 (N,).
        columns: Images of a class.
    """

    rows: Tensor
    columns: int


def _shown(classes: ClassesCard | None, images: int) -> _ByClass | None:
    """Choose what a sheet of at most so many images shows: all classes, or some of many."""
    if classes is None:
        return None
    rows = min(classes.count, _MOST_ROWS, images)
    columns = min(_MOST_COLUMNS, images // rows)
    labels = [i * classes.count // rows for i in range(rows)]
    shown = torch.tensor([classes.row(label) for label in labels])
    return _ByClass(shown.repeat_interleave(columns), columns)


def in_batches_that_fit(draw: Callable[[range], Tensor], images: int, most: int) -> Tensor:
    """Draw images in batches, and halve their size where memory does not hold one.

    Args:
        draw: Draws the images of the indices, (B, C, H, W).
        images: How many there are.
        most: Size of the first batch.

    Raises:
        RuntimeError: Memory does not hold one image.
        MemoryError: The same.
    """
    parts: list[Tensor] = []
    done, size = 0, most
    while done < images:
        batch = range(done, min(done + size, images))
        try:
            parts.append(draw(batch))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or len(batch) == 1:
                raise
            size = len(batch) // 2
        else:
            done = batch.stop
    return torch.cat(parts)


def draw_samples(trainer: Trainer, images: int = SHEET_IMAGES) -> Path:
    """Write <out>/samples-<update>.png: images of the averaged weights, from the same noise.

    Where there are classes, each row is one of them, and each column has the same noise.

    Raises:
        BadOutput: The file cannot be written.
        RuntimeError: Memory does not hold one image.
    """
    recipe = trainer.recipe
    cfg = recipe.network
    schedule = scheduler_config.schedule_of(recipe.schedule)
    plan = compile_plan(schedule, recipe.sample_steps, prediction=recipe.prediction)

    shown = _shown(trainer.classes, images)

    trainer.net.eval()

    def draw(cells: range) -> Tensor:
        rows = None if shown is None else shown.rows[list(cells)].to(trainer.device)
        indices = cells if shown is None else [cell % shown.columns for cell in cells]

        def net(x: Tensor, t: Tensor) -> Tensor:
            with autocast(trainer.counters.precision, trainer.device):
                return trainer.averaged(x, t, rows).float()

        return to_bytes(sample(net, plan, SHEET_SEED, indices, cfg.shape, trainer.device)).cpu()

    try:
        # A batch fits without gradients if it fits with them.
        count = images if shown is None else len(shown.rows)
        finished = in_batches_that_fit(draw, count, recipe.training.batch_size)
    finally:
        trainer.net.train()
    path = trainer.out / f"samples-{trainer.counters.update:06d}.png"
    with written(path):
        sheet(finished, shown.columns if shown else None).save(path)
    return path
