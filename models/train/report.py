"""What a training run shows while it runs: the loss curve and a sheet of samples, as PNGs beside its state."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from torch.func import functional_call

from models.checkpoints import diffusers_format
from models.checkpoints.png import sheet
from models.diffusion.plans import compile_plan
from models.diffusion.sampling import sample, to_bytes
from models.train.output import written
from models.train.precision import autocast
from models.train.trainer import Trainer

SHEET_IMAGES = 64
SHEET_SEED = 0


def draw_loss(trainer: Trainer) -> Path:
    """<out>/loss.png: the mean loss between readings, and over ten readings, on logarithmic axes."""
    from matplotlib.figure import Figure  # the train extra; only drawing needs it

    updates, losses = (
        [u for u, _ in trainer.counters.losses],
        [loss for _, loss in trainer.counters.losses],
    )
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.loglog(updates, losses, color="0.8", label="between readings")
    smooth = [
        sum(part) / len(part) for i in range(len(losses)) if (part := losses[max(0, i - 9) : i + 1])
    ]
    axes.loglog(updates, smooth, color="C0", label="mean of ten")
    axes.set(xlabel="updates", ylabel="L_simple", title=trainer.recipe.card.name)
    axes.legend()
    path = trainer.out / "loss.png"
    with written(path):
        figure.savefig(path, dpi=110)
    return path


def draw_samples(trainer: Trainer, images: int = SHEET_IMAGES) -> Path:
    """<out>/samples-<update>.png: images of the averaged weights, always from the same noise."""
    recipe, cfg = trainer.recipe, trainer.recipe.network
    plan = compile_plan(
        diffusers_format.schedule_of(recipe.schedule),
        recipe.training.sample_steps,
        prediction=recipe.prediction,
    )

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
