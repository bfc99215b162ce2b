"""The U-Net's layers as a CPU runs them fastest: weights are laid out once, not in every step.

The sums are those of models/networks/unet.py, and the same kernels (oneDNN) make them. With the
weights laid out beforehand, every batch size gives the same bits. With size 1, PyTorch's own
convolution would take another kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.layers import Attention, Pointwise
from models.networks.network import DenoisingNetwork
from worker.backends.cpu.kernels import CompiledNorm, library


def pack(net: DenoisingNetwork) -> None:
    """Replace the layers of a network in place. It cannot be trained afterwards.

    Its precision must be final.
    """
    bf16 = next(net.parameters()).dtype == torch.bfloat16
    packs = _can_pack() and (has_bf16() or not bf16)
    # Inner modules come first, as PackedAttention takes over the norm that its attention has.
    for module in reversed(list(net.modules())):
        for name, child in list(module.named_children()):
            if isinstance(child, Attention):
                setattr(module, name, PackedAttention(child))
            elif isinstance(child, nn.Conv2d) and not isinstance(child, Pointwise) and packs:
                setattr(module, name, PackedConv(child))
            elif isinstance(child, nn.GroupNorm) and library():
                setattr(module, name, CompiledNorm(child))
            elif isinstance(child, nn.GroupNorm) and bf16:
                setattr(module, name, ContiguousNorm(child))


def has_bf16() -> bool:
    """Tell whether oneDNN computes in bf16 natively on this CPU."""
    mkldnn = torch.ops.mkldnn
    return torch.backends.mkldnn.is_available() and bool(mkldnn._is_mkldnn_bf16_supported())


def _can_pack() -> bool:
    """Tell whether PyTorch has what PackedConv calls: its inductor's functions, not public ones."""
    wanted = ("_convolution_pointwise", "_reorder_convolution_weight", "_get_mkldnn_serialized_md")
    has_all = all(hasattr(torch.ops.mkldnn, name) for name in wanted)
    return torch.backends.mkldnn.is_available() and has_all


class PackedConv(nn.Module):
    """A convolution whose weights are laid out as oneDNN wants them.

    For some batch sizes and numbers of threads, oneDNN wants another layout. If it is given the
    wrong one, it lays the weights out anew in every call, which can cost more than the convolution.
    So each layout is kept, once. At most two have been seen.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        """Take the weights and options of `conv`."""
        super().__init__()
        self.conv = conv
        self.options = [list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups]
        # by x's shape and the number of threads
        self._packed: dict[tuple[torch.Size, int], Tensor] = {}
        self._layouts: dict[bytes, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x (B, C, H, W); the result is channels_last."""
        x = x.contiguous(memory_format=torch.channels_last)
        key = (x.shape, torch.get_num_threads())
        packed = self._packed.get(key)
        if packed is None:
            packed = self._packed[key] = self._laid_out(x.shape)
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, packed, self.conv.bias, *self.options, "none", [], ""
        )
        return out

    def _laid_out(self, shape: torch.Size) -> Tensor:
        packed = torch.ops.mkldnn._reorder_convolution_weight(
            self.conv.weight, *self.options, list(shape)
        )
        layout = torch.ops.mkldnn._get_mkldnn_serialized_md(packed).numpy().tobytes()
        return self._layouts.setdefault(layout, packed)


class PackedAttention(nn.Module):
    """Attention with one product for queries, keys and values instead of three."""

    def __init__(self, attention: Attention) -> None:
        """Take the weights and the norm of `attention`."""
        super().__init__()
        self.heads = attention.heads
        self.group_norm = attention.group_norm
        self.out = attention.to_out[0]
        parts = (attention.to_q, attention.to_k, attention.to_v)
        self.divisor = attention.divisor
        self.weight = torch.cat([part.weight for part in parts]).detach()
        self.bias = torch.cat([part.bias for part in parts]).detach()

    def forward(self, x: Tensor) -> Tensor:
        """Add to x (B, C, H, W) what its positions attend to."""
        B, C, H, W = x.shape
        h = x if self.group_norm is None else self.group_norm(x)
        tokens = h.permute(0, 2, 3, 1).reshape(B * H * W, C)
        qkv = F.linear(tokens, self.weight, self.bias)
        q, k, v = qkv.view(B, H * W, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B * H * W, -1)
        added: Tensor = self.out(mixed).view(B, H, W, C).permute(0, 3, 1, 2)
        return x + added if self.divisor == 1 else (x + added) / self.divisor


class ContiguousNorm(nn.Module):
    """GroupNorm of a copy that is laid out channel by channel.

    PyTorch's bf16 kernel for channels_last takes up to ten times as long.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        """Take the norm to call."""
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor, *modulation: Tensor) -> Tensor:
        """Normalise x (B, C, H, W), with what an ActivatedNorm takes beside it."""
        out: Tensor = self.norm(x.contiguous(), *modulation)
        return out
