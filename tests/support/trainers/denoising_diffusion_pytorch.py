"""The network and the process of denoising-diffusion-pytorch, in plain PyTorch.

Modules have the names of its checkpoints. Before version 2 its blocks had group norms, and before
1.9 its attention had no memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RootMeanSquare(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        length = x.square().sum(dim=1, keepdim=True).sqrt().clamp(min=1e-12)
        return x / length * self.g * x.shape[1] ** 0.5


class Half(nn.Module):
    def __init__(self, c_in: int, c_out: int, groups: int | None) -> None:
        super().__init__()
        self.proj = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm = nn.GroupNorm(groups, c_out) if groups else RootMeanSquare(c_out)

    def forward(
        self, x: Tensor, scale: Tensor | float = 0.0, shift: Tensor | float = 0.0
    ) -> Tensor:
        return F.silu(self.norm(self.proj(x)) * (scale + 1) + shift)


class TwoHalves(nn.Module):
    def __init__(self, c_in: int, c_out: int, time: int, groups: int | None) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(time, 2 * c_out))
        self.block1, self.block2 = Half(c_in, c_out, groups), Half(c_out, c_out, groups)
        self.res_conv = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        scale, shift = self.mlp(t)[:, :, None, None].chunk(2, dim=1)
        return self.block2(self.block1(x, scale, shift)) + self.res_conv(x)


class Attends(nn.Module):
    def __init__(self, channels: int, full: bool, heads: int, width: int, tokens: int) -> None:
        super().__init__()
        self.full, self.heads, self.width = full, heads, width
        self.norm = RootMeanSquare(channels)
        self.to_qkv = nn.Conv2d(channels, 3 * heads * width, 1, bias=False)
        out = nn.Conv2d(heads * width, channels, 1)
        self.to_out = out if full else nn.Sequential(out, RootMeanSquare(channels))
        if tokens:
            last = (tokens, width) if full else (width, tokens)
            self.mem_kv = nn.Parameter(torch.randn(2, heads, *last))
        self.has_memory = tokens > 0

    def forward(self, x: Tensor) -> Tensor:
        B, _, H, W = x.shape
        # each is (B, heads, width, positions)
        q, k, v = self.to_qkv(self.norm(x)).reshape(B, 3, self.heads, self.width, H * W).unbind(1)
        if self.has_memory:
            memory = self.mem_kv.transpose(2, 3) if self.full else self.mem_kv
            k, v = (
                torch.cat([held[None].repeat(B, 1, 1, 1), part], dim=3)
                for held, part in zip(memory, (k, v), strict=True)
            )
        if self.full:
            weights = (torch.einsum("bhcq,bhck->bhqk", q, k) * self.width**-0.5).softmax(dim=-1)
            mixed = torch.einsum("bhqk,bhck->bhcq", weights, v)
        else:
            summary = torch.einsum("bhck,bhek->bhce", k.softmax(dim=3), v)
            mixed = torch.einsum("bhce,bhcq->bheq", summary, q.softmax(dim=2) * self.width**-0.5)
        return self.to_out(mixed.reshape(B, self.heads * self.width, H, W))


class Halved(nn.Module):
    """Four neighbours become channels."""

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        parts = x.reshape(B, C, H // 2, 2, W // 2, 2).permute(0, 1, 3, 5, 2, 4)
        return parts.reshape(B, 4 * C, H // 2, W // 2)


class Sinusoids(nn.Module):
    def __init__(self, width: int, theta: float) -> None:
        super().__init__()
        self.half, self.theta = width // 2, theta

    def forward(self, t: Tensor) -> Tensor:
        step = math.log(self.theta) / (self.half - 1)
        angles = t[:, None] * torch.exp(torch.arange(self.half) * -step)[None]
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class Unet(nn.Module):
    """The network. Options have the names of the package's; `attn` ones hold for all levels."""

    def __init__(
        self,
        dim: int,
        *,
        init_dim: int | None = None,
        dim_mults: Sequence[int] = (1, 2, 4, 8),
        channels: int = 3,
        learned_variance: bool = False,
        self_condition: bool = False,
        full_attn: Sequence[bool] | None = None,
        attn_heads: Sequence[int] | None = None,
        attn_dim_head: Sequence[int] | None = None,
        sinusoidal_pos_emb_theta: float = 10000,
        resnet_block_groups: int | None = None,
        num_mem_kv: int = 4,
    ) -> None:
        super().__init__()
        levels = len(dim_mults)
        full = full_attn or (*(levels - 1) * [False], True)
        heads, widths = attn_heads or levels * [4], attn_dim_head or levels * [32]
        stem = init_dim or dim
        dims = [stem, *(dim * mult for mult in dim_mults)]
        time = 4 * dim
        self.init_conv = nn.Conv2d(channels * (1 + self_condition), stem, 7, padding=3)
        self.time_mlp = nn.Sequential(
            Sinusoids(dim, sinusoidal_pos_emb_theta),
            nn.Linear(dim, time),
            nn.GELU(),
            nn.Linear(time, time),
        )

        def block(c_in: int, c_out: int) -> TwoHalves:
            return TwoHalves(c_in, c_out, time, resnet_block_groups)

        def attention(channels: int, level: int, full: bool) -> Attends:
            return Attends(channels, full, heads[level], widths[level], num_mem_kv)

        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for level in range(levels):
            c, after = dims[level], dims[level + 1]
            last = level == levels - 1
            self.downs.append(
                nn.ModuleList(
                    [
                        block(c, c),
                        block(c, c),
                        attention(c, level, full[level]),
                        nn.Conv2d(c, after, 3, padding=1)
                        if last
                        else nn.Sequential(Halved(), nn.Conv2d(4 * c, after, 1)),
                    ]
                )
            )
        self.mid_block1, self.mid_block2 = block(dims[-1], dims[-1]), block(dims[-1], dims[-1])
        self.mid_attn = attention(dims[-1], levels - 1, True)
        for level in reversed(range(levels)):
            c, after = dims[level + 1], dims[level]
            conv = nn.Conv2d(c, after, 3, padding=1)
            self.ups.append(
                nn.ModuleList(
                    [
                        block(c + after, c),
                        block(c + after, c),
                        attention(c, level, full[level]),
                        nn.Sequential(nn.Upsample(scale_factor=2), conv) if level else conv,
                    ]
                )
            )
        self.final_res_block = block(2 * stem, stem)
        self.final_conv = nn.Conv2d(stem, channels * (1 + learned_variance), 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Run the network: x (B, C, H, W), time (B,)."""
        x = self.init_conv(x)
        first, t, skips = x, self.time_mlp(time), []
        for block1, block2, attention, smaller in self.downs:
            x = block1(x, t)
            skips.append(x)
            x = block2(x, t)
            x = attention(x) + x
            skips.append(x)
            x = smaller(x)
        x = self.mid_block1(x, t)
        x = self.mid_block2(self.mid_attn(x) + x, t)
        for block1, block2, attention, larger in self.ups:
            x = block1(torch.cat([x, skips.pop()], dim=1), t)
            x = block2(torch.cat([x, skips.pop()], dim=1), t)
            x = larger(attention(x) + x)
        return self.final_conv(self.final_res_block(torch.cat([x, first], dim=1), t))


def betas_of(name: str, T: int) -> Tensor:
    """Compute the package's betas, float64 (T,)."""
    if name == "linear":
        return torch.linspace(0.1 / T, 20 / T, T, dtype=torch.float64)
    t = torch.linspace(0, T, T + 1, dtype=torch.float64) / T
    if name == "cosine":
        alpha_bar = ((t + 0.008) / 1.008 * math.pi * 0.5).cos() ** 2
    else:
        low, high = torch.tensor(-3.0).sigmoid(), torch.tensor(3.0).sigmoid()
        alpha_bar = (-(t * 6 - 3).sigmoid() + high) / (high - low)
    alpha_bar = alpha_bar / alpha_bar[0]
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(0, 0.999)


class GaussianDiffusion(nn.Module):
    """The process around a network, with the buffers that its checkpoints hold, in float32."""

    def __init__(
        self,
        model: nn.Module,
        *,
        timesteps: int = 1000,
        objective: str = "pred_v",
        beta_schedule: str | Tensor = "sigmoid",
        min_snr_gamma: float | None = None,
    ) -> None:
        super().__init__()
        self.model, self.objective = model, objective
        betas = beta_schedule
        if isinstance(betas, str):
            betas = betas_of(betas, timesteps)
        alpha_bar = (1 - betas).cumprod(0)
        before = F.pad(alpha_bar[:-1], (1, 0), value=1.0)
        variance = betas * (1 - before) / (1 - alpha_bar)
        snr = alpha_bar / (1 - alpha_bar)
        clipped = snr.clamp(max=min_snr_gamma) if min_snr_gamma else snr
        weights = {"pred_noise": clipped / snr, "pred_x0": clipped, "pred_v": clipped / (snr + 1)}
        for name, values in {
            "betas": betas,
            "alphas_cumprod": alpha_bar,
            "sqrt_alphas_cumprod": alpha_bar.sqrt(),
            "sqrt_one_minus_alphas_cumprod": (1 - alpha_bar).sqrt(),
            "sqrt_recip_alphas_cumprod": (1 / alpha_bar).sqrt(),
            "sqrt_recipm1_alphas_cumprod": (1 / alpha_bar - 1).sqrt(),
            "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
            "posterior_mean_coef1": betas * before.sqrt() / (1 - alpha_bar),
            "posterior_mean_coef2": (1 - before) * (1 - betas).sqrt() / (1 - alpha_bar),
            "loss_weight": weights[objective],
        }.items():
            self.register_buffer(name, values.float())

    @torch.no_grad()
    def sample(self, x: Tensor, noises: Sequence[Tensor]) -> Tensor:
        """Sample from x_T (B, C, H, W), with the noise of each step: x_0, clipped at every step."""
        at: dict[str, Any] = dict(self.named_buffers())
        for t in reversed(range(len(self.get_buffer("betas")))):
            out = self.model(x, torch.full((len(x),), t))
            if self.objective == "pred_noise":
                x_0 = (
                    at["sqrt_recip_alphas_cumprod"][t] * x
                    - at["sqrt_recipm1_alphas_cumprod"][t] * out
                )
            elif self.objective == "pred_v":
                x_0 = (
                    at["sqrt_alphas_cumprod"][t] * x - at["sqrt_one_minus_alphas_cumprod"][t] * out
                )
            else:
                x_0 = out
            x_0 = x_0.clamp(-1, 1)
            mean = at["posterior_mean_coef1"][t] * x_0 + at["posterior_mean_coef2"][t] * x
            deviation = (0.5 * at["posterior_log_variance_clipped"][t]).exp()
            x = mean + (deviation * noises[t] if t else 0)
        return x


def trainers_file(diffusion: GaussianDiffusion, averaged: GaussianDiffusion) -> dict[str, Any]:
    """Make what the package's `Trainer` saves: two sets of weights, and much beside them."""
    average = {f"ema_model.{name}": value for name, value in averaged.state_dict().items()}
    counters = {"initted": torch.tensor(True), "step": torch.tensor(20)}
    return {
        "step": 20,
        "model": diffusion.state_dict(),
        "opt": {"state": {}, "param_groups": []},
        "ema": {**counters, **average},
        "scaler": None,
        "version": "2.3.4",
    }
