"""A first look at a model that was added: what a step costs here, and a sheet of samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor

from models.checkpoints.atomic_files import write_whole
from models.checkpoints.catalog import Card
from models.checkpoints.diffusers_format import Checkpoint, load
from models.checkpoints.images import sheet
from models.checkpoints.layout import SAMPLES
from models.diffusion.options import Sampler
from models.diffusion.plans import Plan
from worker.backends.host import choose_device
from worker.calibration.cache import CalibrationCache
from worker.calibration.tune import TunedNetwork, tune
from worker.engine.chain import ChainRequest
from worker.engine.engine import Engine
from worker.jobs.domain import SHARD_IMAGES

# Images of the sheet, at best.
_IMAGES = 16
# The sheet is to take no longer, at the cost that was measured.
_WITHIN_S = 30.0
# Fewer steps than these show nothing of a model.
_LEAST_STEPS = 10
_SEED = 0


@dataclass(frozen=True, slots=True)
class Draft:
    """What is drawn for the sheet.

    Attributes:
        images: how many.
        sampler: by which sampler.
        steps: in how many steps.
    """

    images: int
    sampler: Sampler
    steps: int


def first_look(card: Card, folder: Path, cache: Path) -> list[str]:
    """Measure a step, draw a sheet into the model's folder, and say both in lines.

    Jobs that name nothing are drawn if that is quick enough. Otherwise it is fewer images, or ddim
    in fewer steps. The calibration is kept, so that a worker on this machine need not measure.

    Args:
        card: the model's.
        folder: where it lies.
        cache: where calibrations are kept.

    Raises:
        Exception: it cannot be loaded or drawn here, such as for want of memory.
    """
    loaded = load(folder, card.sha256)
    shape = (card.shape.channels, card.shape.height, card.shape.width)
    device = choose_device("auto")
    calibrations = CalibrationCache(cache)
    tuned = tune(
        loaded,
        card.sha256,
        shape,
        device,
        SHARD_IMAGES,
        "auto",
        calibrations,
        classes=card.classes,
    )
    seconds = tuned.calibration.seconds
    lines = [_cost(seconds, device)]
    draft = draft_of(card, seconds)
    if draft is None:
        return [*lines, f"not drawn: {_LEAST_STEPS} steps of one image take too long here"]
    images = _drawn(loaded, card, tuned, draft)
    content = BytesIO()
    sheet(images).save(content, "PNG")
    write_whole(folder / SAMPLES, content.getvalue())
    drawn = f"{draft.images} images by {draft.sampler} in {draft.steps} steps"
    return [*lines, f"drawn: {drawn}: {folder / SAMPLES}"]


def _cost(seconds: Mapping[int, float], device: torch.device) -> str:
    small = min(seconds)
    best = min(seconds, key=lambda size: seconds[size] / size)
    return (
        f"measured: an image-step takes {seconds[small] / small:.3g} s alone and "
        f"{seconds[best] / best:.3g} s in a batch of {best}, on {device}"
    )


def draft_of(card: Card, seconds: Mapping[int, float]) -> Draft | None:
    """Choose what the sheet shows, so that it takes no longer than half a minute.

    Args:
        card: the model's.
        seconds: of a step, by batch size.

    Returns:
        The draft, or None if even one image in few steps takes longer.
    """
    defaults = card.defaults
    for images in (_IMAGES, 4, 1):
        fitting = [size for size in seconds if size >= images] or [max(seconds)]
        step_s = math.ceil(images / min(fitting)) * seconds[min(fitting)]
        most = int(_WITHIN_S / step_s)
        if defaults.steps <= most:
            return Draft(images, defaults.sampler, defaults.steps)
        if "ddim" in card.samplers:
            steps = [n for n in range(_LEAST_STEPS, min(most, 50) + 1) if card.takes_steps(n)]
            if steps:
                return Draft(images, "ddim", steps[-1])
    return None


def _drawn(loaded: Checkpoint, card: Card, tuned: TunedNetwork, draft: Draft) -> Tensor:
    """Draw the images by the engine that workers have: uint8 (N, C, H, W)."""
    engine = Engine(tuned.pool, tuned.calibration.seconds)
    plan = _plan(loaded, card, draft)
    # an image of each class, and again from the first on
    classes = card.classes
    rows = [classes.row(i % classes.count) if classes else 0 for i in range(draft.images)]
    engine.submit(
        [ChainRequest(i, "sheet", plan, _SEED, i, class_row=row) for i, row in enumerate(rows)]
    )
    pixels: dict[int, Tensor] = {}
    while len(engine):
        for image in engine.step():
            if image.pixels is None:
                raise ValueError("its network's output is not finite")
            pixels[image.request.index] = image.pixels.cpu()
    return torch.stack([pixels[i] for i in sorted(pixels)])


def _plan(loaded: Checkpoint, card: Card, draft: Draft) -> Plan:
    timesteps = card.timesteps
    process = replace(loaded.process, spacing=timesteps.spacing, offset=timesteps.offset)
    return process.plan(
        draft.steps,
        draft.sampler,
        variance=card.default_variance(draft.steps),
        eta=card.defaults.eta if draft.sampler == "ddim" else 0.0,
    )
