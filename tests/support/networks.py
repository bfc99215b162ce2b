"""Networks with a closed form, for exact tests, and a small U-Net without a zero weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from models.diffusion.schedule import Schedule
from models.networks.unet import UNet
from models.networks.unet_config import UNetConfig
from worker.engine.pool import Pool
from worker.engine.transfers import HostCopy

Net = TypeVar("Net", bound=nn.Module)
SCHEDULE = Schedule.linear()
SHAPE = (1, 4, 6)
TINY = UNetConfig(
    sample_size=8,
    in_channels=1,
    out_channels=1,
    block_out_channels=(8, 16),
    layers_per_block=1,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=16,
    norm_num_groups=4,
)


def gaussian_eps(x: Tensor, t: Tensor, mu: float = 0.3, variance: float = 0.25) -> Tensor:
    """The optimal eps_theta for x_0 ~ N(mu, variance I).

    It is elementwise, so it cannot depend on the batch.
    """
    alpha_bar = SCHEDULE.alpha_bar.float().to(x.device)[t][:, None, None, None]
    centred = x - alpha_bar.sqrt() * mu
    return (1 - alpha_bar).sqrt() * centred / (alpha_bar * variance + 1 - alpha_bar)


def points_eps(points: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The optimal eps_theta of a finite set, (N, C, H, W): a softmax over its points."""

    def net(x: Tensor, t: Tensor) -> Tensor:
        alpha_bar = SCHEDULE.alpha_bar.float()[t][:, None, None, None]
        distance = (x[:, None] - alpha_bar[:, None].sqrt() * points).square().sum((2, 3, 4))
        weight = (-distance / (2 * (1 - alpha_bar[:, :, 0, 0]))).softmax(1)
        x_0 = torch.einsum("bn,nchw->bchw", weight, points)
        return (x - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()

    return net


def random_unet(seed: int = 0, cfg: UNetConfig = TINY) -> UNet:
    """A U-Net without a zero weight: a zero convolution would hide whatever comes before it."""
    torch.manual_seed(seed)
    return without_zeros(UNet(cfg))


def without_zeros(net: Net) -> Net:
    """Add noise to every weight of a network, and freeze it."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return net.eval().requires_grad_(False)


def one_by_one(advance: Callable[[Tensor], None], inputs: Tensor) -> Callable[[], None]:
    """A recorder of steps (worker/engine/cuda_graphs.py) that runs them when they are replayed."""
    advance(inputs)
    return lambda: advance(inputs)


class LatePool(Pool):
    """A pool as on a GPU: a copy arrives after a later step, or when somebody waits for it."""

    steps = 0

    def step(self, columns: Tensor) -> None:
        self.steps += 1
        super().step(columns)

    def copy_out(self, slots: Sequence[int]) -> HostCopy:
        return _Late(super().copy_out(slots).result(), self)


class _Late(HostCopy):
    def __init__(self, tensor: Tensor, pool: LatePool) -> None:
        super().__init__(tensor)
        self._pool = pool
        self._started_at = pool.steps

    def is_here(self) -> bool:
        return self._pool.steps > self._started_at
