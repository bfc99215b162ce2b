"""The network of the paper (Ho et al., 2020, appendix B), in plain PyTorch.

Modules have the names of its weights as converted from TensorFlow (pytorch_diffusion), which the
authors of DDIM (Song et al., 2021) train with too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def embed(t: Tensor, width: int) -> Tensor:
    """Sines, then cosines of t (B,): (B, width)."""
    half = width // 2
    rates = torch.exp(torch.arange(half).float() * -(math.log(10000) / (half - 1)))
    angles = t.float()[:, None] * rates[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class PaperBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, time: int, conv_shortcut: bool = False) -> None:
        super().__init__()
        self.norm1 = norm(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.temb_proj = nn.Linear(time, c_out)
        self.norm2 = norm(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.changes = c_in != c_out
        if self.changes and conv_shortcut:
            self.conv_shortcut = nn.Conv2d(c_in, c_out, 3, padding=1)
        elif self.changes:
            self.nin_shortcut = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.temb_proj(F.silu(temb))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return (self.nin_shortcut(x) if self.changes else x) + h


class PaperAttention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = self.q(h).flatten(2), self.k(h).flatten(2), self.v(h).flatten(2)
        weights = (torch.einsum("bcq,bck->bqk", q, k) * x.shape[1] ** -0.5).softmax(dim=2)
        return x + self.proj_out(torch.einsum("bqk,bck->bcq", weights, v).reshape(x.shape))


class PaperUNet(nn.Module):
    """eps_theta. Options have the names of the published configurations."""

    def __init__(
        self,
        *,
        ch: int,
        out_ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        in_channels: int,
        resolution: int,
        resamp_with_conv: bool = True,
        conv_shortcut: bool = False,
    ) -> None:
        super().__init__()
        self.ch, self.with_conv = ch, resamp_with_conv
        time = 4 * ch
        self.temb = nn.Module()
        self.temb.dense = nn.ModuleList([nn.Linear(ch, time), nn.Linear(time, time)])
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1)
        widths = [ch * mult for mult in ch_mult]
        sides = [resolution // 2**level for level in range(len(widths))]
        c, skips = ch, [ch]
        self.down = nn.ModuleList()
        for level, width in enumerate(widths):
            down = nn.Module()
            down.block, down.attn = nn.ModuleList(), nn.ModuleList()
            for _ in range(num_res_blocks):
                down.block.append(PaperBlock(c, width, time, conv_shortcut))
                c = width
                skips.append(c)
                if sides[level] in attn_resolutions:
                    down.attn.append(PaperAttention(c))
            if level < len(widths) - 1:
                if resamp_with_conv:
                    down.downsample = nn.Module()
                    down.downsample.conv = nn.Conv2d(c, c, 3, stride=2)
                skips.append(c)
            self.down.append(down)
        self.mid = nn.Module()
        self.mid.block_1, self.mid.block_2 = (PaperBlock(c, c, time) for _ in range(2))
        self.mid.attn_1 = PaperAttention(c)
        self.up = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            up = nn.Module()
            up.block, up.attn = nn.ModuleList(), nn.ModuleList()
            for _ in range(num_res_blocks + 1):
                up.block.append(PaperBlock(c + skips.pop(), width, time, conv_shortcut))
                c = width
                if sides[level] in attn_resolutions:
                    up.attn.append(PaperAttention(c))
            if level and resamp_with_conv:
                up.upsample = nn.Module()
                up.upsample.conv = nn.Conv2d(c, c, 3, padding=1)
            self.up.insert(0, up)
        self.norm_out = norm(c)
        self.conv_out = nn.Conv2d(c, out_ch, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Run the network: x (B, C, H, W), t (B,)."""
        first, second = self.temb.dense
        temb = second(F.silu(first(embed(t, self.ch))))
        x = self.conv_in(x)
        skips = [x]
        for level, down in enumerate(self.down):
            for j, block in enumerate(down.block):
                x = block(x, temb)
                x = down.attn[j](x) if len(down.attn) else x
                skips.append(x)
            if level < len(self.down) - 1:
                # the odd row and column that TensorFlow pads at the end
                x = down.downsample.conv(F.pad(x, (0, 1, 0, 1)))
                skips.append(x)
        x = self.mid.block_2(self.mid.attn_1(self.mid.block_1(x, temb)), temb)
        for level, up in reversed(list(enumerate(self.up))):
            for j, block in enumerate(up.block):
                x = block(torch.cat([x, skips.pop()], dim=1), temb)
                x = up.attn[j](x) if len(up.attn) else x
            if level:
                x = up.upsample.conv(F.interpolate(x, scale_factor=2))
        return self.conv_out(F.silu(self.norm_out(x)))
