"""The network of improved-diffusion and guided-diffusion, in plain PyTorch.

Nichol and Dhariwal (2021), section 3 and appendix A; Dhariwal and Nichol (2021), section 3.
Modules have the names of the authors' checkpoints. `new_order=False` is what improved-diffusion
has, and what guided-diffusion calls legacy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def embed(t: Tensor, width: int) -> Tensor:
    """Cosines, then sines of t (B,), which may be a fraction: (B, width)."""
    half = width // 2
    rates = torch.exp(-math.log(10000) * torch.arange(half).float() / half)
    angles = t[:, None].float() * rates[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels)


class Residual(nn.Module):
    def __init__(
        self, c_in: int, c_out: int, time: int, scale_shift: bool, resample: str = ""
    ) -> None:
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        self.in_layers = nn.Sequential(norm(c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, (1 + scale_shift) * c_out))
        last = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.out_layers = nn.Sequential(norm(c_out), nn.SiLU(), nn.Dropout(0.1), last)
        same = c_in == c_out
        self.skip_connection = nn.Identity() if same else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers[:2](x)
        if self.resample == "down":
            x, h = F.avg_pool2d(x, 2), F.avg_pool2d(h, 2)
        elif self.resample == "up":
            x, h = F.interpolate(x, scale_factor=2), F.interpolate(h, scale_factor=2)
        h = self.in_layers[2](h)
        seen = self.emb_layers(emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = seen.chunk(2, dim=1)
            h = self.out_layers[0](h) * (1 + scale) + shift
            return self.skip_connection(x) + self.out_layers[1:](h)
        return self.skip_connection(x) + self.out_layers(h + seen)


class QkvAttention(nn.Module):
    def __init__(self, channels: int, heads: int, new_order: bool) -> None:
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm = norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        B, C, H, W = x.shape
        flat = x.reshape(B, C, H * W)
        width = C // self.heads
        qkv = self.qkv(self.norm(flat))
        if self.new_order:
            parts = qkv.reshape(B, 3, self.heads, width, H * W).unbind(1)
        else:
            parts = qkv.reshape(B, self.heads, 3, width, H * W).unbind(2)
        q, k, v = parts
        weights = (torch.einsum("bhcq,bhck->bhqk", q, k) / math.sqrt(width)).softmax(dim=-1)
        mixed = torch.einsum("bhqk,bhck->bhcq", weights, v).reshape(B, C, H * W)
        return (flat + self.proj_out(mixed)).reshape(B, C, H, W)


class ConvDown(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.op(x)


class ConvUp(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2))


class Stem(nn.Conv2d):
    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return super().forward(x)


class Block(nn.Sequential):
    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        for part in self:
            x = part(x, emb)
        return x


class UNetModel(nn.Module):
    """eps_theta. Options have the names of the authors' scripts.

    One of `num_heads` and `num_head_channels` says how attention is split.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        channel_mult: Sequence[float],
        num_classes: int | None = None,
        num_heads: int = 1,
        num_head_channels: int | None = None,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
    ) -> None:
        super().__init__()
        self.width = model_channels
        time = 4 * model_channels
        self.time_embed = nn.Sequential(
            nn.Linear(model_channels, time), nn.SiLU(), nn.Linear(time, time)
        )
        if num_classes is not None:
            self.label_emb = nn.Embedding(num_classes, time)

        def residual(c_in: int, c_out: int, resample: str = "") -> Residual:
            return Residual(c_in, c_out, time, use_scale_shift_norm, resample)

        def attention(channels: int) -> QkvAttention:
            heads = channels // num_head_channels if num_head_channels else num_heads
            return QkvAttention(channels, heads, use_new_attention_order)

        widths = [int(mult * model_channels) for mult in channel_mult]
        c, smaller, skips = widths[0], 1, [widths[0]]
        self.input_blocks = nn.ModuleList([Block(Stem(in_channels, c, 3, padding=1))])
        for level, width in enumerate(widths):
            for _ in range(num_res_blocks):
                parts: list[nn.Module] = [residual(c, width)]
                if smaller in attention_resolutions:
                    parts.append(attention(width))
                self.input_blocks.append(Block(*parts))
                c = width
                skips.append(c)
            if level < len(widths) - 1:
                self.input_blocks.append(
                    Block(residual(c, c, "down") if resblock_updown else ConvDown(c))
                )
                skips.append(c)
                smaller *= 2
        self.middle_block = Block(residual(c, c), attention(c), residual(c, c))
        self.output_blocks = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for j in range(num_res_blocks + 1):
                parts = [residual(c + skips.pop(), width)]
                c = width
                if smaller in attention_resolutions:
                    parts.append(attention(c))
                if level and j == num_res_blocks:
                    parts.append(residual(c, c, "up") if resblock_updown else ConvUp(c))
                    smaller //= 2
                self.output_blocks.append(Block(*parts))
        last = nn.Conv2d(widths[0], out_channels, 3, padding=1)
        self.out = nn.Sequential(norm(c), nn.SiLU(), last)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Run the network: x (B, C, H, W), t (B,), labels y (B,) if it takes classes."""
        emb = self.time_embed(embed(t, self.width))
        if y is not None:
            emb = emb + self.label_emb(y)
        skips = []
        for block in self.input_blocks:
            x = block(x, emb)
            skips.append(x)
        x = self.middle_block(x, emb)
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), emb)
        return self.out(x)
