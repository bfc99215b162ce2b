"""eps_theta: the U-Net of the paper (appendix B), in the modules of diffusers' `UNet2DModel`.

Shapes: B batch, C channels, H height, W width, F time features (one column per residual channel).
Parameters have the names of diffusers' checkpoint format, so that a state dict loads as it is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.unet_config import UNetConfig


class Pointwise(nn.Conv2d):
    """A 1x1 convolution, computed as one matrix product over all positions.

    The kernel of a convolution, and with it the last bit, changes with the batch size and the
    number of threads. That of a product does not.
    """

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply: x (B, c_in, H, W) -> (B, c_out, H, W)."""
        products = F.linear(x.permute(0, 2, 3, 1), self.weight[:, :, 0, 0], self.bias)
        return products.permute(0, 3, 1, 2)


class NormSiLU(nn.GroupNorm):
    """GroupNorm, then SiLU."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (B, C, H, W)."""
        return F.silu(super().forward(x))


class ResidualBlock(nn.Module):
    """Residual block: norm, SiLU, conv, + time, norm, SiLU, dropout, conv, + x.

    `columns` is the block's part of the time features, which the UNet sets.
    """

    def __init__(self, c_in: int, c_out: int, cfg: UNetConfig) -> None:
        super().__init__()
        self.norm1 = NormSiLU(cfg.norm_num_groups, c_in, eps=cfg.norm_eps)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time_emb_proj = nn.Linear(cfg.time_width, c_out)
        self.norm2 = NormSiLU(cfg.norm_num_groups, c_out, eps=cfg.norm_eps)
        self.dropout = nn.Dropout(cfg.dropout)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.conv_shortcut = Pointwise(c_in, c_out) if c_in != c_out else None
        self.columns = slice(0)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """Run the block: x (B, c_in, H, W), features (B, F) -> (B, c_out, H, W)."""
        h = self.conv1(self.norm1(x))
        h = h + features[:, self.columns, None, None]
        h = self.conv2(self.dropout(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nn.Module):
    """Self-attention over the H*W positions, with a residual connection."""

    def __init__(self, channels: int, cfg: UNetConfig) -> None:
        super().__init__()
        self.heads = cfg.heads(channels)
        self.group_norm = nn.GroupNorm(cfg.norm_num_groups, channels, eps=cfg.norm_eps)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """Add to x (B, C, H, W) what its positions attend to."""
        B, C, H, W = x.shape
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        q, k, v = (
            to(tokens).view(B, H * W, self.heads, C // self.heads).transpose(1, 2)
            for to in (self.to_q, self.to_k, self.to_v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, H * W, C)
        return x + self.to_out[0](mixed).transpose(1, 2).reshape(B, C, H, W)


class Downsample(nn.Module):
    """Stride-2 convolution; padding 0 means the asymmetric (0, 1, 0, 1) of the paper's code."""

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        self.pad = padding == 0
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """Halve the sides: x (B, C, H, W) -> (B, C, H/2, W/2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.pad else x)


class Upsample(nn.Module):
    """Nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Double the sides: x (B, C, H, W) -> (B, C, 2H, 2W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """One resolution on the way down or up.

    It has residual blocks, each followed by attention if the level has it.
    """

    def __init__(self, widths: list[tuple[int, int]], attention: bool, cfg: UNetConfig) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(c_in, c_out, cfg) for c_in, c_out in widths)
        self.attentions = nn.ModuleList(Attention(c_out, cfg) for _, c_out in widths if attention)

    def block(self, j: int, x: Tensor, features: Tensor) -> Tensor:
        """Run residual block j, and the attention after it."""
        x = self.resnets[j](x, features)
        return self.attentions[j](x) if len(self.attentions) else x


class DownLevel(Level):
    """One resolution on the way down, with a downsampling unless it is the last."""

    def __init__(
        self, widths: list[tuple[int, int]], attention: bool, cfg: UNetConfig, last: bool
    ) -> None:
        super().__init__(widths, attention, cfg)
        self.downsamplers = (
            nn.ModuleList()
            if last
            else nn.ModuleList([Downsample(widths[-1][1], cfg.downsample_padding)])
        )

    def forward(self, x: Tensor, skips: list[Tensor], features: Tensor) -> Tensor:
        """Run the level on x (B, C, H, W), and push what the way up needs onto `skips`."""
        for j in range(len(self.resnets)):
            x = self.block(j, x, features)
            skips.append(x)
        for down in self.downsamplers:
            x = down(x)
            skips.append(x)
        return x


class UpLevel(Level):
    """One resolution on the way up, with an upsampling unless it is the last."""

    def __init__(
        self, widths: list[tuple[int, int]], attention: bool, cfg: UNetConfig, last: bool
    ) -> None:
        super().__init__(widths, attention, cfg)
        self.upsamplers = nn.ModuleList() if last else nn.ModuleList([Upsample(widths[-1][1])])

    def forward(self, x: Tensor, skips: list[Tensor], features: Tensor) -> Tensor:
        """Run the level on x (B, C, H, W), and pop what the way down pushed onto `skips`."""
        for j in range(len(self.resnets)):
            x = self.block(j, torch.cat([x, skips.pop()], dim=1), features)
        for up in self.upsamplers:
            x = up(x)
        return x


class Middle(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, cfg: UNetConfig) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(channels, channels, cfg) for _ in range(2))
        self.attentions = nn.ModuleList([Attention(channels, cfg)] if cfg.add_attention else [])

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """Run the middle: x (B, C, H, W), features (B, F) -> (B, C, H, W)."""
        x = self.resnets[0](x, features)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x, features)


class TimeEmbedding(nn.Module):
    """Sinusoid of the raw integer t, linear, SiLU, linear."""

    def __init__(self, cfg: UNetConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.linear_1 = nn.Linear(cfg.block_out_channels[0], cfg.time_width)
        self.linear_2 = nn.Linear(cfg.time_width, cfg.time_width)

    def sinusoid(self, t: Tensor) -> Tensor:
        """Compute sines and cosines of t int (B,): (B, base channels)."""
        half = self.cfg.block_out_channels[0] // 2
        # In any other order of operations, this is off by 6e-5 from diffusers at t near 1000, where
        # the angles are large.
        i = torch.arange(half, dtype=torch.float32, device=t.device)
        exponent = -math.log(10000) * i / (half - self.cfg.freq_shift)
        angle = t[:, None].float() * torch.exp(exponent)
        parts = [angle.sin(), angle.cos()]
        if self.cfg.flip_sin_to_cos:
            parts.reverse()
        return torch.cat(parts, dim=1)

    def forward(self, t: Tensor) -> Tensor:
        """Embed t int (B,): (B, 4 * base channels)."""
        out: Tensor = self.linear_2(F.silu(self.linear_1(self.sinusoid(t))))
        return out


class UNet(nn.Module):
    """The network: (x_t, t) -> eps, x_0 or v, as the checkpoint was trained."""

    def __init__(self, cfg: UNetConfig) -> None:
        super().__init__()
        self.cfg = cfg
        widths = cfg.block_out_channels
        self.conv_in = nn.Conv2d(cfg.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(cfg)
        self.down_blocks = nn.ModuleList()
        skips = [widths[0]]
        c = widths[0]
        for i, width in enumerate(widths):
            pairs = [(c if j == 0 else width, width) for j in range(cfg.layers_per_block)]
            last = i == len(widths) - 1
            self.down_blocks.append(DownLevel(pairs, cfg.down_attention[i], cfg, last))
            skips += [width] * (cfg.layers_per_block + (not last))
            c = width
        self.mid_block = Middle(c, cfg)
        self.up_blocks = nn.ModuleList()
        for i, width in enumerate(reversed(widths)):
            pairs = []
            for _ in range(cfg.layers_per_block + 1):
                pairs.append((c + skips.pop(), width))
                c = width
            self.up_blocks.append(
                UpLevel(pairs, cfg.up_attention[i], cfg, last=i == len(widths) - 1)
            )
        self.conv_norm_out = NormSiLU(cfg.norm_num_groups, widths[0], eps=cfg.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], cfg.out_channels, 3, padding=1)
        self._lay_out_time_features()
        self._initialise()

    def _lay_out_time_features(self) -> None:
        start = 0
        for block in self.residual_blocks:
            block.columns = slice(start, start + block.conv1.out_channels)
            start = block.columns.stop

    @torch.no_grad()
    def _initialise(self) -> None:
        """Set weights to Glorot uniform values, and biases to zero.

        The last layer of every residual branch, and of the network, starts at zero.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    module.bias.zero_()
        for block in self.residual_blocks:
            block.conv2.weight.zero_()
        for module in self.modules():
            if isinstance(module, Attention):
                module.to_out[0].get_parameter("weight").zero_()
        self.conv_out.weight.zero_()

    @property
    def residual_blocks(self) -> list[ResidualBlock]:
        """All residual blocks, in the order of their time features."""
        return [m for m in self.modules() if isinstance(m, ResidualBlock)]

    def time_features(self, t: Tensor) -> Tensor:
        """Compute what the residual blocks add for timestep t: t int (B,) -> float (B, F).

        It depends on t alone. So a server computes a table of it once, for all T, and no thin
        matrix product is left in a step.
        """
        temb = F.silu(self.time_embedding(t))
        return torch.cat([block.time_emb_proj(temb) for block in self.residual_blocks], dim=1)

    def denoise(self, x: Tensor, features: Tensor) -> Tensor:
        """Run the network on time features: x (B, C, H, W), features (B, F) -> (B, C, H, W)."""
        h = self.conv_in(x)
        skips = [h]
        for down in self.down_blocks:
            h = down(h, skips, features)
        h = self.mid_block(h, features)
        for up in self.up_blocks:
            h = up(h, skips, features)
        out: Tensor = self.conv_out(self.conv_norm_out(h))
        return out

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Run the network: x (B, C, H, W), t int (B,) -> (B, C, H, W)."""
        return self.denoise(x, self.time_features(t))

    def parameter_count(self) -> int:
        """Count the weights."""
        return sum(p.numel() for p in self.parameters())
