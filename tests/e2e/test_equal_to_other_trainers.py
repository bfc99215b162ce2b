"""Files of other trainers, added and served: their PNGs are those of the trainers' own networks."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from cli.main import app
from models.checkpoints import diffusers_format
from models.diffusion.noise import normal
from models.diffusion.sampling import of_class, sample
from tests.e2e.conftest import Service, serving
from tests.support.networks import without_zeros
from tests.support.trainers.denoising_diffusion_pytorch import (
    GaussianDiffusion,
    Unet,
    trainers_file,
)
from tests.support.trainers.openai import UNetModel

SEED, COUNT = 11, 2
SHAPE = (3, 8, 8)
# Every timestep of the one, and a few of the other's 1000.
T, STEPS = 25, 20
# in grey levels: 1e-3 of [-1, 1], and what rounding takes
CLOSE = 1e-3 * 127.5 + 0.5
FLAGS = (
    "--image_size 8 --diffusion_steps 1000 --noise_schedule linear --num_head_channels 32"
    " --learn_sigma True --class_cond True --num_channels 64"
)

pytestmark = pytest.mark.timeout(400)


def add(file: Path, name: str, models_dir: Path, *options: str) -> None:
    command = ["models", "add", str(file), "--name", name, "--no-draw", *options]
    added = CliRunner().invoke(app, command, env={"DDPM_MODELS_DIR": str(models_dir)})
    assert added.exit_code == 0, added.output


@pytest.fixture(scope="module")
def lucid() -> GaussianDiffusion:
    """A model of denoising-diffusion-pytorch with what its releases take by default."""
    torch.manual_seed(1)
    return without_zeros(
        GaussianDiffusion(
            Unet(16, dim_mults=(1, 2)), timesteps=T, objective="pred_v", beta_schedule="sigmoid"
        )
    )


@pytest.fixture(scope="module")
def guided() -> UNetModel:
    """A network of guided-diffusion, narrow first as the one for 512 pixels, with 4 classes."""
    torch.manual_seed(2)
    return without_zeros(
        UNetModel(
            in_channels=3,
            model_channels=64,
            out_channels=6,
            num_res_blocks=1,
            attention_resolutions=(2, 4),
            channel_mult=(0.5, 1, 1),
            num_classes=4,
            num_head_channels=32,
            use_scale_shift_norm=True,
            resblock_updown=True,
        )
    )


@pytest.fixture(scope="module")
def added(
    tmp_path_factory: pytest.TempPathFactory, lucid: GaussianDiffusion, guided: UNetModel
) -> Iterator[Service]:
    """A service with both models, added by the command, and one worker."""
    root = tmp_path_factory.mktemp("trainers")
    torch.save(trainers_file(lucid, lucid), root / "model-1.pt")
    save_file(guided.state_dict(), root / "512x512_diffusion.safetensors")
    with serving(root) as service:
        add(root / "model-1.pt", "lucid", service.models_dir, "--size", "8")
        add(root / "512x512_diffusion.safetensors", "guided", service.models_dir, "--flags", FLAGS)
        service.models = "lucid,guided"
        service.add_worker(precision="fp32")
        yield service


def noise(draw: int) -> Tensor:
    """What the service draws for the images of SEED: x_T first."""
    index = torch.arange(COUNT)
    return normal(torch.full_like(index, SEED), index, torch.full_like(index, draw), SHAPE)


def assert_drawn(service: Service, x_0: Tensor, **request: object) -> None:
    """Compare a job's PNGs with x_0 (N, C, H, W)."""
    job = service.post(seed=SEED, count=COUNT, sampler="ddpm", **request)
    pngs = service.pngs(job["id"])
    ours = np.stack([np.asarray(Image.open(BytesIO(pngs[i]))) for i in range(COUNT)]).astype(float)
    theirs = ((x_0.clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1).numpy()
    assert (apart := np.abs(ours - theirs).max()) <= CLOSE, apart
    between = ((ours > 0) & (ours < 255)).mean()
    assert between > 0.1, "most pixels are black or white, and compare nothing"


def test_a_job_of_denoising_diffusion_pytorch_draws_the_packages_pictures(added, lucid):
    theirs = lucid.sample(noise(0), [noise(T - t) for t in range(T)])
    assert_drawn(added, theirs, model="lucid", steps=T)


def test_a_job_of_guided_diffusions_network_for_512_pixels_draws_its_pictures(added, guided):
    process = diffusers_format.load(added.models_dir / "guided").process
    plan = process.plan(STEPS, variance="learned")
    theirs = sample(of_class(guided, 2), plan, SEED, range(COUNT), SHAPE)
    assert_drawn(added, theirs, model="guided", steps=STEPS, variance="learned", label=2)
