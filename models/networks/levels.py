"""The U-Net's levels: one resolution on the way down or up, and the middle.

Shapes: B batch, C channels, H height, W width, F time features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.networks.layers import (
    ActivatedNorm,
    Attention,
    Downsample,
    Pointwise,
    Resampling,
    ResidualBlock,
    Upsample,
    resampled,
)
from models.networks.unet_config import SKIP_CHANNELS, LevelKind, UNetConfig, skip_groups

_SKIP_DIVISOR = math.sqrt(2)
_SKIP_ATTENTION_GROUPS = 32


class Level(nn.Module):
    """One resolution on the way down or up.

    It has residual blocks, each followed by attention if the level has it.
    """

    def __init__(self, widths: list[tuple[int, int]], attention: bool, cfg: UNetConfig) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(c_in, c_out, cfg) for c_in, c_out in widths)
        self.attentions = nn.ModuleList(
            Attention(c_out, cfg, cfg.groups(c_out)) for _, c_out in widths if attention
        )

    def block(self, j: int, x: Tensor, features: Tensor) -> Tensor:
        """Run residual block j, and the attention after it."""
        x = self.resnets[j](x, features)
        return self.attentions[j](x) if len(self.attentions) else x


class DownLevel(Level):
    """One resolution on the way down, with a downsampling unless it is the last."""

    def __init__(
        self, widths: list[tuple[int, int]], kind: LevelKind, cfg: UNetConfig, last: bool
    ) -> None:
        super().__init__(widths, kind.attention, cfg)
        channels = widths[-1][1]
        self.downsamplers = nn.ModuleList()
        if not last and (kind.sampling or cfg.downsample_type or "conv") == "resnet":
            self.downsamplers.append(ResidualBlock(channels, channels, cfg, resampling="down"))
        elif not last:
            self.downsamplers.append(Downsample(channels, cfg.downsample_padding))

    def forward(self, x: Tensor, skips: list[Tensor], features: Tensor) -> Tensor:
        """Run the level on x (B, C, H, W), and push what the way up needs onto `skips`."""
        for j in range(len(self.resnets)):
            x = self.block(j, x, features)
            skips.append(x)
        for down in self.downsamplers:
            x = down(x, features) if isinstance(down, ResidualBlock) else down(x)
            skips.append(x)
        return x


class UpLevel(Level):
    """One resolution on the way up, with an upsampling unless it is the last."""

    def __init__(
        self, widths: list[tuple[int, int]], kind: LevelKind, cfg: UNetConfig, last: bool
    ) -> None:
        super().__init__(widths, kind.attention, cfg)
        channels = widths[-1][1]
        self.upsamplers = nn.ModuleList()
        if not last and (kind.sampling or cfg.upsample_type or "conv") == "resnet":
            self.upsamplers.append(ResidualBlock(channels, channels, cfg, resampling="up"))
        elif not last:
            self.upsamplers.append(Upsample(channels))

    def forward(self, x: Tensor, skips: list[Tensor], features: Tensor) -> Tensor:
        """Run the level on x (B, C, H, W), and pop what the way down pushed onto `skips`."""
        for j in range(len(self.resnets)):
            x = self.block(j, torch.cat([x, skips.pop()], dim=1), features)
        for up in self.upsamplers:
            x = up(x, features) if isinstance(up, ResidualBlock) else up(x)
        return x


class SkipDownLevel(nn.Module):
    """A level on the way down that adds the filtered picture to what it passes on."""

    def __init__(
        self, widths: list[tuple[int, int]], kind: LevelKind, cfg: UNetConfig, last: bool
    ) -> None:
        super().__init__()
        groups = [(skip_groups(c_in), skip_groups(c_out)) for c_in, c_out in widths]
        self.resnets = _skip_blocks(widths, groups, cfg)
        self.attentions = nn.ModuleList(
            _skip_attention(c_out, cfg) for _, c_out in widths if kind.attention
        )
        channels = widths[-1][1]
        self.resnet_down = None if last else _skip_sampler(channels, cfg, "filter down")
        self.skip_conv = None if last else Pointwise(SKIP_CHANNELS, channels)

    def forward(
        self, x: Tensor, skips: list[Tensor], features: Tensor, picture: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run the level on x (B, C, H, W) and the picture (B, 3, H, W)."""
        for j, block in enumerate(self.resnets):
            x = block(x, features)
            x = self.attentions[j](x) if len(self.attentions) else x
            skips.append(x)
        if self.resnet_down is not None and self.skip_conv is not None:
            picture = resampled(picture, "filter down")
            x = self.skip_conv(picture) + self.resnet_down(x, features)
            skips.append(x)
        return x, picture


class SkipUpLevel(nn.Module):
    """A level on the way up that adds to the picture, and doubles its sides."""

    def __init__(
        self,
        widths: list[tuple[int, int]],
        kind: LevelKind,
        cfg: UNetConfig,
        last: bool,
        skipped: list[int],
    ) -> None:
        """Make the layers; `skipped` are the channels that come from the way down."""
        super().__init__()
        groups = []
        for (c_in, c_out), skip in zip(widths, skipped, strict=True):
            # diffusers divides another sum where there is attention
            before = c_in - skip + skip // 4 if kind.attention else c_in // 4
            groups.append((min(before, 32), skip_groups(c_out)))
        channels = widths[-1][1]
        self.resnets = _skip_blocks(widths, groups, cfg)
        self.attentions = nn.ModuleList([_skip_attention(channels, cfg)] if kind.attention else [])
        self.resnet_up = None if last else _skip_sampler(channels, cfg, "filter up")
        self.skip_conv = None if last else nn.Conv2d(channels, SKIP_CHANNELS, 3, padding=1)
        self.skip_norm = (
            None if last else ActivatedNorm(skip_groups(channels), channels, cfg.norm_eps)
        )

    def forward(
        self, x: Tensor, skips: list[Tensor], features: Tensor, picture: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Run the level on x (B, C, H, W) and the picture (B, 3, H/2, W/2), if there is one."""
        for block in self.resnets:
            x = block(torch.cat([x, skips.pop()], dim=1), features)
        for attention in self.attentions:
            x = attention(x)
        if picture is not None:
            picture = resampled(picture, "filter up")
        if self.resnet_up is not None and self.skip_conv is not None:
            added = self.skip_conv(self.skip_norm(x)) if self.skip_norm is not None else x
            picture = added if picture is None else picture + added
            x = self.resnet_up(x, features)
        return x, picture


class Middle(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, cfg: UNetConfig) -> None:
        super().__init__()
        divisor = cfg.mid_block_scale_factor
        self.resnets = nn.ModuleList(
            ResidualBlock(channels, channels, cfg, divisor=divisor) for _ in range(2)
        )
        groups = cfg.attn_norm_num_groups
        if groups is None and cfg.resnet_time_scale_shift == "default":
            groups = cfg.groups(channels)
        self.attentions = nn.ModuleList(
            [Attention(channels, cfg, groups, divisor)] if cfg.add_attention else []
        )

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """Run the middle: x (B, C, H, W), features (B, F) -> (B, C, H, W)."""
        x = self.resnets[0](x, features)
        for attention in self.attentions:
            x = attention(x)
        out: Tensor = self.resnets[1](x, features)
        return out


def _skip_blocks(
    widths: list[tuple[int, int]], groups: list[tuple[int, int]], cfg: UNetConfig
) -> nn.ModuleList:
    return nn.ModuleList(
        ResidualBlock(c_in, c_out, cfg, groups=of_block, divisor=_SKIP_DIVISOR)
        for (c_in, c_out), of_block in zip(widths, groups, strict=True)
    )


def _skip_attention(channels: int, cfg: UNetConfig) -> Attention:
    return Attention(channels, cfg, _SKIP_ATTENTION_GROUPS, _SKIP_DIVISOR)


def _skip_sampler(channels: int, cfg: UNetConfig, resampling: Resampling) -> ResidualBlock:
    groups = skip_groups(channels)
    return ResidualBlock(
        channels,
        channels,
        cfg,
        groups=(groups, groups),
        divisor=_SKIP_DIVISOR,
        resampling=resampling,
        shortcut=True,
    )
