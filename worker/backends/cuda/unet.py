"""The U-Net of models/networks/unet.py as a GPU runs it, with the same bits in every batch.

The sums are the same, module by module.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
import triton
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.networks.layers import Attention, Downsample, ResidualBlock, Upsample
from models.networks.levels import DownLevel, UpLevel
from models.networks.network import DenoisingNetwork
from models.networks.unet import UNet
from models.networks.unet_config import UNetConfig
from worker.backends.cuda.layers import LayerWeights, convolution, normalised, patches

Module = TypeVar("Module", bound=nn.Module)
# one tensor, or two side by side
Sources = Sequence[Tensor]
# the kernels need channels that are a multiple of this
_MULTIPLE = 16
# the kernels need this compute capability, or a higher one
_OLDEST = (8, 0)
# The first two give an image the same bits in every batch. Flash attention, which PyTorch would
# take, does not. The last is for head widths that the others do not support.
_ATTENTION = [SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class GpuUNet:
    """`UNet.denoise` by the kernels of this project.

    Attributes:
        kernels: What a worker reports as its kernels.
    """

    kernels = f"ours, triton {triton.__version__}"

    def __init__(self, net: DenoisingNetwork) -> None:
        """Lay out the weights of a network that is on its device, in its precision.

        Raises:
            ValueError: The kernels are not made for this family of networks or these channels, or
                the GPU lacks the tensor cores that they need.
        """
        if not isinstance(net, UNet):
            raise ValueError(f"they are not made for a {type(net).__name__}")
        for channels in net.cfg.block_out_channels:
            if channels % _MULTIPLE:
                raise ValueError(f"{channels} channels are no multiple of {_MULTIPLE}")
        if option := _not_made_for(net.cfg):
            raise ValueError(f"they are not made for {option}")
        assert net.mid_block is not None
        weight = net.conv_in.weight
        if weight.is_cuda and torch.cuda.get_device_capability(weight.device) < _OLDEST:
            raise ValueError("the GPU's compute capability is below 8.0")
        self.dtype = weight.dtype
        self.conv_in = LayerWeights.from_patches(net.conv_in)
        self.conv_out = LayerWeights.from_layer(net.conv_out)
        self.norm_out = _Norm(net.conv_norm_out)
        self.down = [_Down(level) for level in _all(DownLevel, net.down_blocks)]
        self.middle = [_Block(block) for block in _all(ResidualBlock, net.mid_block.resnets)]
        attentions = _all(Attention, net.mid_block.attentions)
        self.mid_attentions = [_Attention(attention) for attention in attentions]
        self.up = [_Up(level) for level in _all(UpLevel, net.up_blocks)]

    def __call__(self, x: Tensor, features: Tensor) -> Tensor:
        """Run the network: x float32 (B, C, H, W), features (B, F) -> float32 (B, C, H, W)."""
        with sdpa_kernel(_ATTENTION, set_priority=True):
            h = convolution(patches(x, self.dtype), self.conv_in)
            skips = [h]
            for down in self.down:
                h = down(h, skips, features)
            first, last = self.middle
            h = first([h], features)
            for attention in self.mid_attentions:
                h = attention(h)
            h = last([h], features)
            for up in self.up:
                h = up(h, skips, features)
            return convolution(self.norm_out([h], silu=True), self.conv_out, planes=True)


def _not_made_for(cfg: UNetConfig) -> str | None:
    """Name the first option that the kernels do not compute, if there is one."""
    kinds = (*cfg.down_kinds, *cfg.up_kinds)
    whole_heads = all(
        channels % cfg.head_width(channels) == 0 for channels in cfg.block_out_channels
    )
    options = {
        f"act_fn {cfg.act_fn}": cfg.activation != "silu",
        "resnet_time_scale_shift scale_shift": cfg.resnet_time_scale_shift != "default",
        "center_input_sample": cfg.center_input_sample,
        "mid_block_type null": cfg.mid_block_type is None,
        "mid_block_scale_factor": cfg.mid_block_scale_factor != 1,
        "skip blocks": any(kind.skip for kind in kinds),
        "resnet sampling": any(kind.sampling == "resnet" for kind in kinds)
        or "resnet" in (cfg.downsample_type, cfg.upsample_type),
        "heads that do not divide the channels": not whole_heads,
    }
    return next((option for option, is_used in options.items() if is_used), None)


class _Norm:
    def __init__(self, norm: nn.GroupNorm) -> None:
        self.groups = norm.num_groups
        self.eps = norm.eps
        self.weight = norm.weight.detach().float()
        self.bias = norm.bias.detach().float()

    def __call__(self, sources: Sources, silu: bool) -> Tensor:
        return normalised(sources, self.groups, self.eps, self.weight, self.bias, silu)


class _Block:
    def __init__(self, block: ResidualBlock) -> None:
        self.norm1 = _Norm(block.norm1)
        self.norm2 = _Norm(block.norm2)
        self.conv1 = LayerWeights.from_layer(block.conv1)
        self.conv2 = LayerWeights.from_layer(block.conv2, block.conv_shortcut)
        self.columns = block.columns
        self.has_shortcut = block.conv_shortcut is not None

    def __call__(self, sources: Sources, features: Tensor) -> Tensor:
        h = self.norm1(sources, silu=True)
        h = convolution(h, self.conv1, features=features[:, self.columns])
        h = self.norm2([h], silu=True)
        if self.has_shortcut:
            return convolution(h, self.conv2, sources=sources)
        # Two sources always have a shortcut: they have more channels than the block puts out.
        return convolution(h, self.conv2, added=sources[0])


class _Attention:
    def __init__(self, attention: Attention) -> None:
        self.heads = attention.heads
        assert isinstance(attention.group_norm, nn.GroupNorm)
        self.norm = _Norm(attention.group_norm)
        (out,) = _all(nn.Linear, attention.to_out)
        self.out = LayerWeights.from_layer(out)
        self.qkv = LayerWeights.side_by_side([attention.to_q, attention.to_k, attention.to_v])

    def __call__(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        qkv = convolution(self.norm([x], silu=False), self.qkv).permute(0, 2, 3, 1)
        q, k, v = qkv.reshape(B, H * W, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, H, W, C)
        return convolution(mixed.contiguous().permute(0, 3, 1, 2), self.out, added=x)


class _Level:
    """Residual blocks at one resolution, each followed by attention if the level has it."""

    def __init__(self, level: DownLevel | UpLevel) -> None:
        self.blocks = [_Block(block) for block in _all(ResidualBlock, level.resnets)]
        self.attentions = [_Attention(attention) for attention in _all(Attention, level.attentions)]

    def block(self, j: int, sources: Sources, features: Tensor) -> Tensor:
        x = self.blocks[j](sources, features)
        return self.attentions[j](x) if self.attentions else x


class _Down(_Level):
    def __init__(self, level: DownLevel) -> None:
        super().__init__(level)
        self.convs = [
            (LayerWeights.from_layer(down.conv), 0 if down.pad else 1)
            for down in _all(Downsample, level.downsamplers)
        ]

    def __call__(self, x: Tensor, skips: list[Tensor], features: Tensor) -> Tensor:
        for j in range(len(self.blocks)):
            x = self.block(j, [x], features)
            skips.append(x)
        for weights, pad in self.convs:
            x = convolution(x, weights, stride=2, pad=pad)
            skips.append(x)
        return x


class _Up(_Level):
    def __init__(self, level: UpLevel) -> None:
        super().__init__(level)
        upsamplers = _all(Upsample, level.upsamplers)
        self.convs = [LayerWeights.from_layer(up.conv) for up in upsamplers]

    def __call__(self, x: Tensor, skips: list[Tensor], features: Tensor) -> Tensor:
        for j in range(len(self.blocks)):
            x = self.block(j, [x, skips.pop()], features)
        for weights in self.convs:
            x = convolution(x, weights, up=True)
        return x


def _all(kind: type[Module], modules: Iterable[nn.Module]) -> list[Module]:
    """List modules that are all of one kind, as PyTorch's lists do not tell mypy."""
    found = [module for module in modules if isinstance(module, kind)]
    assert len(found) == len(list(modules))
    return found
