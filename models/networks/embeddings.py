"""Embeddings of the timestep and of the class, whose sum the residual blocks see."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.unet_config import UNetConfig


class Sinusoid(nn.Module):
    """Sines and cosines of the raw integer t, at frequencies that are fixed."""

    def __init__(self, cfg: UNetConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.width = cfg.timestep_width

    def forward(self, t: Tensor) -> Tensor:
        """Compute sines and cosines of t (B,): (B, width)."""
        half = self.width // 2
        # In any other order of operations, this is off by 6e-5 from diffusers at t near 1000, where
        # the angles are large.
        i = torch.arange(half, dtype=torch.float32, device=t.device)
        exponent = -math.log(10000) * i / (half - self.cfg.freq_shift)
        angle = t[:, None].float() * torch.exp(exponent)
        parts = [angle.sin(), angle.cos()]
        if self.cfg.flip_sin_to_cos:
            parts.reverse()
        # an odd width is filled up with a zero
        return F.pad(torch.cat(parts, dim=1), (0, self.width % 2))


class Fourier(nn.Module):
    """Sines and cosines of log t, at frequencies that were drawn at random."""

    def __init__(self, cfg: UNetConfig) -> None:
        super().__init__()
        self.width = cfg.timestep_width
        self.weight = nn.Parameter(torch.zeros(cfg.block_out_channels[0]), requires_grad=False)

    def forward(self, t: Tensor) -> Tensor:
        """Compute sines and cosines of t (B,): (B, 2 * base channels).

        t = 0 has no logarithm, and is embedded as 1.
        """
        angle = t.float().clamp(min=1).log()[:, None] * self.weight[None, :] * 2 * math.pi
        return torch.cat([angle.sin(), angle.cos()], dim=1)


class Looked(nn.Embedding):
    """A learned vector for each timestep."""

    def __init__(self, cfg: UNetConfig) -> None:
        super().__init__(cfg.num_train_timesteps or 0, cfg.timestep_width)
        self.width = cfg.timestep_width


def projection(cfg: UNetConfig) -> Sinusoid | Fourier | Looked:
    """Make what turns a timestep into numbers."""
    if cfg.time_embedding_type == "positional":
        return Sinusoid(cfg)
    return Fourier(cfg) if cfg.time_embedding_type == "fourier" else Looked(cfg)


class Embedding(nn.Module):
    """Linear, SiLU, linear."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(c_in, c_out)
        self.linear_2 = nn.Linear(c_out, c_out)

    def forward(self, x: Tensor) -> Tensor:
        """Embed x (B, c_in): (B, c_out)."""
        out: Tensor = self.linear_2(F.silu(self.linear_1(x)))
        return out


def class_embedding(cfg: UNetConfig, width: int) -> nn.Module | None:
    """Make the embedding of class labels, or None if the network takes none.

    Args:
        cfg: The network's options.
        width: Channels of the numbers that a timestep is turned into.
    """
    if cfg.class_embed_type == "timestep":
        return Embedding(width, cfg.time_width)
    if cfg.class_embed_type == "identity":
        return nn.Identity()
    if cfg.num_class_embeds is not None:
        return nn.Embedding(cfg.num_class_embeds, cfg.time_width)
    return None
