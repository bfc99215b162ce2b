"""The U-Net of `denoising-diffusion-pytorch`, which attends at every level.

Its residual blocks convolve before they normalise, and the time scales and shifts the first norm.
Most levels have linear attention (Shen et al., 2021), whose cost grows with the number of positions
and not with its square. RMS norms are those of Zhang and Sennrich (2019).

Shapes: B batch, C channels, H height, W width, F time features, h heads, d channels of a head, N
positions and memory tokens.
Parameters have the names of that package's checkpoints, so that a state dict loads as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.layers import ActivatedNorm, Pointwise
from models.networks.linear_attention_config import LinearAttentionConfig
from models.networks.network import DenoisingNetwork


class RMSNorm(nn.Module):
    """Divides each position's channels by their root mean square, and scales them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (B, C, H, W)."""
        return F.normalize(x, dim=1) * self.g * math.sqrt(self.g.shape[1])


class ActivatedRMSNorm(RMSNorm):
    """RMSNorm, then scale and shift for each image if they are given, then SiLU."""

    def forward(self, x: Tensor, modulation: Tensor | None = None) -> Tensor:
        """Normalise x (B, C, H, W); modulation (B, 2C) holds the scales - 1, then the shifts."""
        x = super().forward(x)
        if modulation is not None:
            scale, shift = modulation[:, :, None, None].chunk(2, dim=1)
            x = x * (1 + scale) + shift
        return F.silu(x)


class ConvNorm(nn.Module):
    """A 3x3 convolution, then an activated norm."""

    def __init__(self, c_in: int, c_out: int, groups: int | None) -> None:
        super().__init__()
        self.proj = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm = (
            ActivatedRMSNorm(c_out) if groups is None else ActivatedNorm(groups, c_out, 1e-5)
        )

    def forward(self, x: Tensor, modulation: Tensor | None = None) -> Tensor:
        """Run it on x (B, C, H, W), with what the norm takes."""
        out: Tensor = self.norm(self.proj(x), modulation)
        return out


class PostNormBlock(nn.Module):
    """Residual block whose convolutions come before their norms.

    `columns` is the block's part of the time features, which the network sets.
    """

    def __init__(self, c_in: int, c_out: int, time_width: int, groups: int | None) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(time_width, 2 * c_out))
        self.block1 = ConvNorm(c_in, c_out, groups)
        self.block2 = ConvNorm(c_out, c_out, groups)
        self.res_conv = nn.Identity() if c_in == c_out else Pointwise(c_in, c_out)
        self.columns = slice(0)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """Run the block: x (B, c_in, H, W), features (B, F) -> (B, c_out, H, W)."""
        h = self.block2(self.block1(x, features[:, self.columns]))
        out: Tensor = h + self.res_conv(x)
        return out


class _MemoryAttention(nn.Module):
    """The projections, norm and memory that both kinds of attention have."""

    def __init__(self, channels: int, heads: int, width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = RMSNorm(channels)
        self.to_qkv = Pointwise(channels, 3 * heads * width, bias=False)
        self.mem_kv: nn.Parameter | None = None

    def projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Make queries, keys and values (B, h, H*W, d) of x (B, C, H, W)."""
        B, _, H, W = x.shape
        qkv = self.to_qkv(self.norm(x)).permute(0, 2, 3, 1)
        q, k, v = qkv.reshape(B, H * W, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return q, k, v


class FullAttention(_MemoryAttention):
    """Softmax attention over all positions and the memory."""

    def __init__(self, channels: int, heads: int, width: int, tokens: int) -> None:
        super().__init__(channels, heads, width)
        if tokens:
            self.mem_kv = nn.Parameter(torch.zeros(2, heads, tokens, width))
        self.to_out = Pointwise(heads * width, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Compute what the positions of x (B, C, H, W) attend to, of the same shape."""
        B, _, H, W = x.shape
        q, k, v = self.projected(x)
        if self.mem_kv is not None:
            k, v = (
                torch.cat([memory.expand(B, -1, -1, -1), part], dim=2)
                for memory, part in zip(self.mem_kv, (k, v), strict=True)
            )
        mixed = F.scaled_dot_product_attention(q, k, v).permute(0, 1, 3, 2)
        out: Tensor = self.to_out(mixed.reshape(B, -1, H, W))
        return out


class LinearAttention(_MemoryAttention):
    """Attention whose queries read one (d, d) summary of all keys and values in each head."""

    def __init__(self, channels: int, heads: int, width: int, tokens: int) -> None:
        super().__init__(channels, heads, width)
        if tokens:
            self.mem_kv = nn.Parameter(torch.zeros(2, heads, width, tokens))
        self.to_out = nn.Sequential(Pointwise(heads * width, channels), RMSNorm(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Compute what the positions of x (B, C, H, W) attend to, of the same shape."""
        B, _, H, W = x.shape
        q, k, v = self.projected(x)
        if self.mem_kv is not None:
            k, v = (
                torch.cat([memory.mT.expand(B, -1, -1, -1), part], dim=2)
                for memory, part in zip(self.mem_kv, (k, v), strict=True)
            )
        q = q.softmax(dim=-1) / math.sqrt(q.shape[-1])
        # (B, h, d, d): each channel of the keys weighs the positions
        summary = k.softmax(dim=-2).mT @ v
        mixed = (q @ summary).permute(0, 1, 3, 2)
        out: Tensor = self.to_out(mixed.reshape(B, -1, H, W))
        return out


class PlainSinusoid(nn.Module):
    """Sines, then cosines of t, at frequencies that are fixed."""

    def __init__(self, width: int, theta: float) -> None:
        super().__init__()
        self.frequencies = width // 2
        self.theta = theta

    def forward(self, t: Tensor) -> Tensor:
        """Compute them for t (B,): (B, width)."""
        i = torch.arange(self.frequencies, device=t.device)
        angle = t[:, None].float() * torch.exp(i * -(math.log(self.theta) / (self.frequencies - 1)))
        return torch.cat([angle.sin(), angle.cos()], dim=1)


class LinearAttentionUNet(DenoisingNetwork):
    """The network. It takes no class labels."""

    def __init__(self, cfg: LinearAttentionConfig) -> None:
        super().__init__()
        self.cfg = cfg
        time_width = 4 * cfg.base_channels
        self.init_conv = nn.Conv2d(cfg.in_channels, cfg.stem_channels, 7, padding=3)
        self.time_mlp = nn.Sequential(
            PlainSinusoid(cfg.base_channels, cfg.theta),
            nn.Linear(cfg.base_channels, time_width),
            nn.GELU(),
            nn.Linear(time_width, time_width),
        )
        block = partial(PostNormBlock, time_width=time_width, groups=cfg.norm_num_groups)
        widths = (cfg.stem_channels, *cfg.block_out_channels)
        levels = len(cfg.block_out_channels)

        def attention(level: int, channels: int, full: bool) -> nn.Module:
            kind = FullAttention if full else LinearAttention
            heads, width = cfg.attention_heads[level], cfg.attention_head_dim[level]
            return kind(channels, heads, width, cfg.memory_tokens)

        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for level, (c, c_next) in enumerate(pairwise(widths)):
            # halves the sides, but for the last level
            sampler: nn.Module = nn.Conv2d(c, c_next, 3, padding=1)
            if level < levels - 1:
                sampler = nn.Sequential(nn.PixelUnshuffle(2), Pointwise(4 * c, c_next))
            attending = attention(level, c, cfg.full_attention[level])
            self.downs.append(nn.ModuleList([block(c, c), block(c, c), attending, sampler]))
        middle = widths[-1]
        self.mid_block1 = block(middle, middle)
        self.mid_attn = attention(levels - 1, middle, full=True)
        self.mid_block2 = block(middle, middle)
        for level in reversed(range(levels)):
            c, c_next = widths[level + 1], widths[level]
            # doubles the sides, but for the first level
            sampler = nn.Conv2d(c, c_next, 3, padding=1)
            if level:
                sampler = nn.Sequential(nn.Upsample(scale_factor=2.0), sampler)
            attending = attention(level, c, cfg.full_attention[level])
            blocks = [block(c + c_next, c) for _ in range(2)]
            self.ups.append(nn.ModuleList([*blocks, attending, sampler]))
        self.final_res_block = block(2 * cfg.stem_channels, cfg.stem_channels)
        self.final_conv = Pointwise(cfg.stem_channels, cfg.out_channels)
        start = 0
        for residual in self.residual_blocks:
            width = 2 * residual.block1.proj.out_channels
            residual.columns = slice(start, start + width)
            start += width

    @property
    def residual_blocks(self) -> list[PostNormBlock]:
        """All residual blocks, in the order of their time features."""
        return [m for m in self.modules() if isinstance(m, PostNormBlock)]

    def time_features(self, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Compute what the residual blocks see of the timestep.

        Args:
            t: int (B,).
            labels: None.

        Returns:
            float (B, F).

        Raises:
            ValueError: Labels are given.
        """
        if labels is not None:
            raise ValueError("the network takes no class labels; leave them out")
        temb = self.time_mlp(t)
        return torch.cat([residual.mlp(temb) for residual in self.residual_blocks], dim=1)

    def denoise(self, x: Tensor, features: Tensor) -> Tensor:
        """Run the network on time features: x (B, C, H, W), features (B, F) -> (B, C', H, W)."""
        stem = x = self.init_conv(x)
        skips = []
        for first, second, attention, sampler in _layers(self.downs):
            x = first(x, features)
            skips.append(x)
            x = second(x, features)
            x = attention(x) + x
            skips.append(x)
            x = sampler(x)
        x = self.mid_block1(x, features)
        x = self.mid_attn(x) + x
        x = self.mid_block2(x, features)
        for first, second, attention, sampler in _layers(self.ups):
            x = first(torch.cat([x, skips.pop()], dim=1), features)
            x = second(torch.cat([x, skips.pop()], dim=1), features)
            x = sampler(attention(x) + x)
        x = self.final_res_block(torch.cat([x, stem], dim=1), features)
        out: Tensor = self.final_conv(x)
        return out


def _layers(levels: nn.ModuleList) -> Iterator[Iterable[nn.Module]]:
    """Yield the two blocks, the attention and the sampler of each level."""
    return cast("Iterator[nn.ModuleList]", iter(levels))
