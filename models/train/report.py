"""Pictures of a training run while it runs: the loss curve and a sheet of samples, as PNGs."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from torch.func import functional_call

from models.checkpoints import diffusers_format
from models.checkpoints.images import sheet
from models.diffusion.plans import compile_plan
from models.diffusion.sampling import sample, to_bytes
from models.train.output import written
from models.train.precision import autocast
from models.train.trainer import Trainer

SHEET_IMAGES = 64
SHEET_SEED = 0


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
    axes.set(xlabel="updates", ylabel="L_simple", title=trainer.recipe.card.name)
    axes.legend()
    path = trainer.out / "loss.png"
    with written(path):
        figure.savefig(path, dpi=110)
    return path


def draw_samples(trainer: Trainer, images: int = SHEET_IMAGES) -> Path:
    """Write <out>/samples-<update>.png: images of the averaged weights, from the same noise.

    Raises:
        BadOutput: The file cannot be written.
    """
    recipe = trainer.recipe
    cfg = recipe.network
    schedule = diffusers_format.schedule_of(recipe.schedule)
    plan = compile_plan(schedule, recipe.training.sample_steps, prediction=recipe.prediction)

    def net(x: Tensor, t: Tensor) -> Tensor:
        with autocast(trainer.counters.precision, trainer.device):
            out: Tensor = functional_call(trainer.net, trainer.ema.averages, (x, t))
        return out.float()

    trainer.net.eval()
    shape = (cfg.in_channels, cfg.sample_size, cfg.sample_size)
    finished = sample(net, plan, SHEET_SEED, range(images), shape, trainer.device)
    trainer.net.train()
    path = trainer.out / f"samples-{trainer.counters.update:06d}.png"
    with written(path):
        sheet(to_bytes(finished)).save(path)
    return path
