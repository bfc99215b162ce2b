"""Fixtures of the tests of models/: a small network, a finished model folder, and one thread."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.checkpoints import diffusers_format
from models.checkpoints.catalog import ScheduleCard
from models.diffusion.schedule import Schedule
from models.networks.unet import UNet
from models.networks.unet_config import UNetConfig

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DISABLE_TELEMETRY", "YES")


@pytest.fixture(autouse=True)
def _one_thread_and_a_known_generator() -> Iterator[None]:
    """Use one thread: the tensors are small, and a second one would cost more than it gives."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def paper() -> Schedule:
    """T = 1000, linear from 1e-4 to 0.02."""
    return Schedule.linear()


@pytest.fixture(scope="session")
def small_config() -> UNetConfig:
    """A network of 8x8 RGB and some 20,000 weights, with every kind of layer.

    It has two levels, and attention at the lower one.
    """
    return UNetConfig(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )


@pytest.fixture(scope="session")
def randomise() -> Callable[[nn.Module], nn.Module]:
    """Give every parameter random values, as zeros of the initialisation hide wrong wiring."""

    @torch.no_grad()
    def fill(net: nn.Module, seed: int = 0) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        for name, p in net.named_parameters():
            p.normal_(generator=generator)
            if p.ndim > 1:
                # keeps activations near unit variance
                p.mul_(p[0].numel() ** -0.5)
            else:
                p.mul_(0.2).add_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        return net

    return fill


@pytest.fixture(scope="session")
def small_net(small_config: UNetConfig, randomise: Callable) -> UNet:
    return randomise(UNet(small_config)).eval().requires_grad_(False)


@pytest.fixture
def folder(tmp_path: Path, small_net: UNet) -> Path:
    """A model folder as `diffusers_format.save` leaves it."""
    path = tmp_path / "model"
    schedule = ScheduleCard(kind="linear", T=1000, beta_start=1e-4, beta_end=0.02)
    diffusers_format.save(path, small_net.cfg, small_net.state_dict(), schedule, "epsilon")
    return path


@pytest.fixture
def noise_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], Tensor]], None]:
    """`noise_of(f)` lets sampling take f(draw), (B, C, H, W), as its noise. Draw 0 is x_T."""

    def replace(draws: Callable[[int], Tensor]) -> None:
        def draw_instead(seed: Tensor, index: Tensor, draw: Tensor, shape: object) -> Tensor:
            return draws(int(draw[0]))

        monkeypatch.setattr("models.diffusion.sampling.normal", draw_instead)

    return replace
