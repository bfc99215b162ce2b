"""The U-Net's layers: norms, residual blocks, attention, and what halves and doubles the sides.

Shapes: B batch, C channels, H height, W width, F time features.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.unet_config import Activation, UNetConfig, divide

# How a residual block changes the sides: not at all, by the mean of four or the nearest one, or by
# the filter (1, 3, 3, 1).
Resampling = Literal["none", "down", "up", "filter down", "filter up"]


class Pointwise(nn.Conv2d):
    """A 1x1 convolution, computed as one matrix product over all positions.

    The kernel of a convolution, and with it the last bit, changes with the batch size and the
    number of threads. That of a product does not.
    """

    def __init__(self, c_in: int, c_out: int, bias: bool = True) -> None:
        super().__init__(c_in, c_out, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply: x (B, c_in, H, W) -> (B, c_out, H, W)."""
        products = F.linear(x.permute(0, 2, 3, 1), self.weight[:, :, 0, 0], self.bias)
        return products.permute(0, 3, 1, 2)


def activate(x: Tensor, activation: Activation) -> Tensor:
    """Apply an activation to each value."""
    if activation == "silu":
        return F.silu(x)
    if activation == "gelu":
        return F.gelu(x)
    return F.mish(x) if activation == "mish" else F.relu(x)


class ActivatedNorm(nn.GroupNorm):
    """GroupNorm, then scale and shift for each image if they are given, then an activation."""

    def __init__(
        self, groups: int, channels: int, eps: float, activation: Activation = "silu"
    ) -> None:
        divide(channels, groups, "norm_num_groups")
        super().__init__(groups, channels, eps=eps)
        self.activation = activation

    def forward(self, x: Tensor, modulation: Tensor | None = None) -> Tensor:
        """Normalise x (B, C, H, W); modulation (B, 2C) holds the scales - 1, then the shifts."""
        x = super().forward(x)
        if modulation is not None:
            scale, shift = modulation[:, :, None, None].chunk(2, dim=1)
            x = x * (1 + scale) + shift
        return activate(x, self.activation)


class ResidualBlock(nn.Module):
    """Residual block: norm, activation, conv, time, norm, activation, dropout, conv, + x.

    `columns` is the block's part of the time features, which the UNet sets. They are added before
    the second norm, or scale and shift its result.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        cfg: UNetConfig,
        *,
        groups: tuple[int, int] | None = None,
        divisor: float = 1.0,
        resampling: Resampling = "none",
        shortcut: bool = False,
    ) -> None:
        """Make the layers.

        Args:
            c_in: Channels that it takes.
            c_out: Channels that it puts out.
            cfg: The network's options.
            groups: Groups of the two norms. None: the network's.
            divisor: What the sum is divided by.
            resampling: What changes the sides.
            shortcut: Whether it has a 1x1 convolution even where c_in is c_out.
        """
        super().__init__()
        before, after = groups or (cfg.groups(c_in), cfg.groups(c_out))
        self.modulates = cfg.resnet_time_scale_shift == "scale_shift"
        self.norm1 = ActivatedNorm(before, c_in, cfg.norm_eps, cfg.activation)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time_emb_proj = nn.Linear(cfg.time_width, c_out * (2 if self.modulates else 1))
        self.norm2 = ActivatedNorm(after, c_out, cfg.norm_eps, cfg.activation)
        self.dropout = nn.Dropout(cfg.dropout)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.conv_shortcut = Pointwise(c_in, c_out) if shortcut or c_in != c_out else None
        self.divisor = divisor
        self.resampling = resampling
        self.columns = slice(0)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """Run the block: x (B, c_in, H, W), features (B, F) -> (B, c_out, H', W')."""
        h = self.norm1(x)
        if self.resampling != "none":
            x, h = resampled(x, self.resampling), resampled(h, self.resampling)
        h = self.conv1(h)
        if self.modulates:
            h = self.norm2(h, features[:, self.columns])
        else:
            h = self.norm2(h + features[:, self.columns, None, None])
        h = self.conv2(self.dropout(h))
        out: Tensor = h + (x if self.conv_shortcut is None else self.conv_shortcut(x))
        return out if self.divisor == 1 else out / self.divisor


class Attention(nn.Module):
    """Self-attention over the H*W positions, with a residual connection."""

    def __init__(
        self, channels: int, cfg: UNetConfig, groups: int | None, divisor: float = 1.0
    ) -> None:
        """Make the layers.

        Args:
            channels: Channels that it takes.
            cfg: The network's options.
            groups: Groups of the norm. None: there is none.
            divisor: What the sum is divided by.
        """
        super().__init__()
        self.heads = cfg.heads(channels)
        inner = self.heads * cfg.head_width(channels)
        self.group_norm: nn.Module | None = None
        if groups is not None:
            divide(channels, groups, "attention's groups")
            self.group_norm = nn.GroupNorm(groups, channels, eps=cfg.norm_eps)
        self.to_q = nn.Linear(channels, inner)
        self.to_k = nn.Linear(channels, inner)
        self.to_v = nn.Linear(channels, inner)
        self.to_out = nn.ModuleList([nn.Linear(inner, channels)])
        self.divisor = divisor

    def forward(self, x: Tensor) -> Tensor:
        """Add to x (B, C, H, W) what its positions attend to."""
        B, C, H, W = x.shape
        h = x if self.group_norm is None else self.group_norm(x)
        tokens = h.flatten(2).transpose(1, 2)
        q, k, v = (
            to(tokens).view(B, H * W, self.heads, -1).transpose(1, 2)
            for to in (self.to_q, self.to_k, self.to_v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, H * W, -1)
        out: Tensor = x + self.to_out[0](mixed).transpose(1, 2).reshape(B, C, H, W)
        return out if self.divisor == 1 else out / self.divisor


class Downsample(nn.Module):
    """Stride-2 convolution; padding 0 means the asymmetric (0, 1, 0, 1) of the paper's code."""

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        self.pad = padding == 0
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """Halve the sides: x (B, C, H, W) -> (B, C, H/2, W/2)."""
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)) if self.pad else x)
        return out


class Upsample(nn.Module):
    """Nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Double the sides: x (B, C, H, W) -> (B, C, 2H, 2W)."""
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


def resampled(x: Tensor, resampling: Resampling) -> Tensor:
    """Halve or double the sides of x (B, C, H, W), or leave them."""
    if resampling == "down":
        return F.avg_pool2d(x, 2)
    if resampling == "up":
        return F.interpolate(x, scale_factor=2.0, mode="nearest")
    if resampling == "filter down":
        return _filtered_down(_filtered_down(x, 2), 3)
    return _filtered_up(_filtered_up(x, 2), 3) if resampling == "filter up" else x


def _filtered_down(x: Tensor, dim: int) -> Tensor:
    """Filter a side by (1, 3, 3, 1) / 8, and take every second value. Outside x is zero.

    The sums are written out. As a convolution they would get another kernel for another batch.
    """
    half = x.shape[dim] // 2
    padded = F.pad(x, (0, 0, 1, 1) if dim == 2 else (1, 1, 0, 0))
    even, odd = (padded.narrow(dim, k, padded.shape[dim] - k) for k in (0, 1))
    first, second = (_every_second(part, dim) for part in (even, odd))
    outer = first.narrow(dim, 0, half) + second.narrow(dim, 1, half)
    inner = second.narrow(dim, 0, half) + first.narrow(dim, 1, half)
    return (outer + 3 * inner) / 8


def _filtered_up(x: Tensor, dim: int) -> Tensor:
    """Put zeros between the values of a side, and filter it by (1, 3, 3, 1) / 4."""
    side = x.shape[dim]
    padded = F.pad(x, (0, 0, 1, 1) if dim == 2 else (1, 1, 0, 0))
    before, after = padded.narrow(dim, 0, side), padded.narrow(dim, 2, side)
    pairs = torch.stack([(before + 3 * x) / 4, (3 * x + after) / 4], dim=dim + 1)
    return pairs.flatten(dim, dim + 1)


def _every_second(x: Tensor, dim: int) -> Tensor:
    return x[:, :, ::2] if dim == 2 else x[:, :, :, ::2]
