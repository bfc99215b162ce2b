"""Models that diffusers published, added and served: their PNGs are those of its own pipelines.

Pipelines get the noise of this service instead of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    UNet2DModel,
)
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from cli.main import app
from docs.generate.comparison import randomised
from models.diffusion.noise import normal
from models.diffusion.schedule import linspace_grid
from tests.e2e.conftest import Service, serving

SEED, COUNT, STEPS = 11, 2, 50
SHAPE = (3, 8, 8)
# A grey level is 1/127.5 of [-1, 1]: 1e-3 of that range, and what rounding takes.
CLOSE = 1e-3 * 127.5 + 0.5

pytestmark = pytest.mark.timeout(400)


@dataclass(frozen=True)
class Family:
    """A kind of model: its scheduler, the options of its jobs, and the channels of its output."""

    scheduler: Any
    job: dict[str, Any] = field(default_factory=dict)
    channels: int = 3


FAMILIES = {
    "fixed-small": Family(DDPMScheduler()),
    "fixed-large": Family(DDPMScheduler(variance_type="fixed_large"), {"variance": "fixed_large"}),
    "cosine": Family(DDPMScheduler(beta_schedule="squaredcos_cap_v2")),
    "v-zero-snr": Family(
        DDPMScheduler(
            beta_schedule="scaled_linear",
            rescale_betas_zero_snr=True,
            prediction_type="v_prediction",
            timestep_spacing="trailing",
        )
    ),
    "x-0": Family(DDPMScheduler(prediction_type="sample", timestep_spacing="linspace")),
    "learned-range": Family(
        DDPMScheduler(variance_type="learned_range"), {"variance": "learned"}, channels=6
    ),
    "thresholding": Family(
        DDPMScheduler(thresholding=True, sample_max_value=3.0, clip_sample=False)
    ),
    "ddim": Family(DDIMScheduler(), {"sampler": "ddim"}),
    "ddim-eta": Family(DDIMScheduler(steps_offset=1), {"sampler": "ddim", "eta": 0.7}),
    "dpmpp-2m": Family(
        DPMSolverMultistepScheduler(
            prediction_type="sample", solver_order=2, final_sigmas_type="zero"
        ),
        {"sampler": "dpmpp_2m"},
    ),
}


def network(family: Family) -> UNet2DModel:
    """Make the network that all families share, but for its output, without a zero weight."""
    return randomised(
        UNet2DModel(
            sample_size=SHAPE[1],
            in_channels=3,
            out_channels=family.channels,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
        )
    )


def publish(folder: Path, family: Family) -> None:
    """Write a family's model as diffusers does."""
    pipeline = DDIMPipeline if isinstance(family.scheduler, DDIMScheduler) else DDPMPipeline
    pipeline(network(family), family.scheduler).save_pretrained(folder)


def add(folder: Path, models_dir: Path) -> None:
    command = ["models", "add", str(folder), "--published-timesteps", "--no-draw"]
    added = CliRunner().invoke(app, command, env={"DDPM_MODELS_DIR": str(models_dir)})
    assert added.exit_code == 0, added.output


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with a model of each family, added by the command."""
    root = tmp_path_factory.mktemp("published")
    with serving(root) as service:
        for name, family in FAMILIES.items():
            publish(root / name, family)
            add(root / name, service.models_dir)
        service.models = ",".join(FAMILIES)
        service.add_worker(precision="fp32", pool_images="192")
        yield service


@contextmanager
def noise_of_the_service() -> Iterator[None]:
    """Let diffusers draw what this service draws for the images of SEED: x_T first."""
    drawn = iter(range(STEPS + 1))

    def draw(*_: Any, **__: Any) -> Tensor:
        index = torch.arange(COUNT)
        return normal(torch.full_like(index, SEED), index, index * 0 + next(drawn), SHAPE)

    places = (
        "pipelines.ddpm.pipeline_ddpm",
        "pipelines.ddim.pipeline_ddim",
        "schedulers.scheduling_ddpm",
        "schedulers.scheduling_ddim",
    )
    patches = [patch(f"diffusers.{place}.randn_tensor", draw) for place in places]
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in patches:
            each.stop()


@torch.inference_mode()
def drawn_by_diffusers(folder: Path, family: Family) -> np.ndarray:
    """Sample with diffusers' own pipeline: grey levels before they are rounded, (N, H, W, C)."""
    if isinstance(family.scheduler, DPMSolverMultistepScheduler):
        return drawn_by_a_solver(folder)
    options: dict[str, Any] = {"batch_size": COUNT, "num_inference_steps": STEPS}
    kind = DDPMPipeline
    if isinstance(family.scheduler, DDIMScheduler):
        kind = DDIMPipeline
        options |= {"eta": family.job.get("eta", 0.0), "use_clipped_model_output": True}
    pipeline = kind.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    with noise_of_the_service():
        return pipeline(**options, output_type="np").images * 255


def drawn_by_a_solver(folder: Path) -> np.ndarray:
    """Sample with a solver, of which diffusers has no pipeline without a prompt."""
    net = UNet2DModel.from_pretrained(folder / "unet")
    scheduler = DPMSolverMultistepScheduler.from_pretrained(folder / "scheduler")
    scheduler.set_timesteps(timesteps=linspace_grid(STEPS, 1000).flip(0).tolist())
    index = torch.arange(COUNT)
    x = normal(torch.full_like(index, SEED), index, index * 0, SHAPE)
    for t in scheduler.timesteps:
        x = scheduler.step(net(x, t).sample, t, x).prev_sample
    return ((x / 2 + 0.5).clamp(0, 1) * 255).permute(0, 2, 3, 1).numpy()


# diffusers' own warnings
@pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_pngs_of_a_family_are_those_of_diffusers_pipeline(published, name):
    family = FAMILIES[name]
    options = {"sampler": "ddpm"} | family.job
    job = published.post(model=name, seed=SEED, count=COUNT, steps=STEPS, **options)
    pngs = published.pngs(job["id"])
    ours = np.stack([np.asarray(Image.open(BytesIO(pngs[i]))) for i in range(COUNT)]).astype(float)
    theirs = drawn_by_diffusers(published.logs / name, family)
    assert (apart := np.abs(ours - theirs).max()) <= CLOSE, apart
    between = ((ours > 0) & (ours < 255)).mean()
    assert between > 0.1, "most pixels are black or white, and compare nothing"
