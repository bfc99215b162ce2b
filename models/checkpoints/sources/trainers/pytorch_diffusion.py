"""Weights of the paper's network by the names of `pytorch_diffusion`, as folders of diffusers.

They are those of Ho et al. (2020), converted from TensorFlow, and what the authors of DDIM trained
(Song et al., 2021). The network is `UNet2DModel`'s own. Files hold weights alone, and trained on
the process of the paper: T = 1000 and linear betas.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from models.checkpoints.bad_checkpoint import BadCheckpoint
from models.checkpoints.catalog import ScheduleCard
from models.checkpoints.layout import CONFIG, SCHEDULER, WEIGHTS, write_json
from models.checkpoints.scheduler_config import scheduler_config
from models.checkpoints.sources.tensors import write
from models.diffusion.options import PublishedVariance
from models.diffusion.schedule import LINEAR_END, LINEAR_START, LINEAR_T

NAME = "pytorch_diffusion"
_MARKS = (
    "temb.dense.0.weight",
    "mid.attn_1.q.weight",
    "norm_out.weight",
    "down.0.block.0.norm1.weight",
)
_PART = re.compile(r"(down|up)\.(\d{1,2})\.(block|attn)\.(\d{1,2})\.(.+)")
_SAMPLER = re.compile(r"(?:down\.(\d{1,2})\.downsample|up\.(\d{1,2})\.upsample)\.conv\.(.+)")
_OUTSIDE = {
    "temb.dense.0": "time_embedding.linear_1",
    "temb.dense.1": "time_embedding.linear_2",
    "conv_in": "conv_in",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
}
_MIDDLE = {"block_1": "resnets.0", "attn_1": "attentions.0", "block_2": "resnets.1"}
_BLOCK = {
    "norm1": "norm1",
    "conv1": "conv1",
    "temb_proj": "time_emb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "nin_shortcut": "conv_shortcut",
}
_ATTENTION = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}


class _Published(NamedTuple):
    """What is known of a model of the paper, but does not stand in its file."""

    name: str
    side: int
    variance: PublishedVariance


# by the channels of the levels, the levels with attention, and the blocks of a level
_PUBLISHED: dict[tuple[tuple[int, ...], tuple[int, ...], int], _Published] = {
    ((128, 256, 256, 256), (1,), 2): _Published("CIFAR-10", 32, "fixed_large"),
    ((128, 128, 256, 256, 512, 512), (4,), 2): _Published(
        "CelebA-HQ and LSUN, 256 pixels", 256, "fixed_small"
    ),
}


def recognises(names: Iterable[str]) -> bool:
    """Tell by its names whether a file is of this layout."""
    return set(_MARKS) <= set(names)


def write_folder(tensors: Mapping[str, Tensor], flags: str | None, folder: Path) -> list[str]:
    """Write the model as a folder of diffusers, without `sample_size` where nothing tells it.

    Args:
        tensors: The weights, by the trainer's names.
        flags: None, as there is nothing that they could say.
        folder: The folder to make.

    Returns:
        What was assumed, a sentence each.

    Raises:
        BadCheckpoint: `UNet2DModel` is no such network; the text says why.
    """
    if flags is not None:
        raise BadCheckpoint(
            "--flags are not needed for this layout; use --size, --schedule, --timesteps and"
            " --variance for what the file does not say"
        )
    levels, layers = _count(tensors)
    widths = tuple(_width(tensors, level) for level in range(levels))
    attends = tuple(f"down.{level}.attn.0.q.weight" in tensors for level in range(levels))
    renamed = {_renamed(name, levels): _flat(name, tensor) for name, tensor in tensors.items()}
    known = _PUBLISHED.get((widths, tuple(i for i, is_so in enumerate(attends) if is_so), layers))
    write(renamed, folder / "unet" / WEIGHTS)
    first = tensors["conv_in.weight"]
    write_json(
        folder / "unet" / CONFIG,
        {
            "_class_name": "UNet2DModel",
            "_diffusers_version": "0.35.0",
            "sample_size": known.side if known else None,
            "in_channels": first.shape[1],
            "out_channels": tensors["conv_out.weight"].shape[0],
            "block_out_channels": list(widths),
            "layers_per_block": layers,
            "down_block_types": [f"{'Attn' * a}DownBlock2D" for a in attends],
            "up_block_types": [f"{'Attn' * a}UpBlock2D" for a in reversed(attends)],
            "downsample_padding": 0,
            "attention_head_dim": None,
            "norm_eps": 1e-6,
            "flip_sin_to_cos": False,
            "freq_shift": 1,
        },
    )
    card = ScheduleCard(kind="linear", T=LINEAR_T, beta_start=LINEAR_START, beta_end=LINEAR_END)
    variance = known.variance if known else "fixed_small"
    (folder / "scheduler").mkdir()
    write_json(folder / "scheduler" / SCHEDULER, scheduler_config(card, "epsilon", variance))
    return [
        f"by its shape the network is the paper's for {known.name}, with {variance}"
        if known
        else f"assumed the variance {variance}, as the file says none; --variance states another",
        f"assumed the paper's process: linear betas, T={LINEAR_T}, epsilon",
    ]


def _count(tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """Count the levels, and the blocks of a level on the way down."""
    found: dict[str, dict[int, set[int]]] = {"down": {}, "up": {}}
    attentions: dict[tuple[str, int], set[int]] = {}
    for name in tensors:
        if match := _PART.fullmatch(name):
            level, j = int(match[2]), int(match[4])
            if match[3] == "block":
                found[match[1]].setdefault(level, set()).add(j)
            else:
                attentions.setdefault((match[1], level), set()).add(j)
    levels, layers = len(found["down"]), len(found["down"].get(0, ()))
    for way, count in (("down", layers), ("up", layers + 1)):
        if found[way] != {level: set(range(count)) for level in range(levels)}:
            raise BadCheckpoint(f"{way} has not {count} blocks at each of {levels} levels")
    for level in range(levels):
        at = {way: attentions.get((way, level), set()) for way in found}
        if any(at.values()) and at != {way: found[way][level] for way in found}:
            raise BadCheckpoint(f"level {level} has attention in some of its blocks only")
    if levels > 1 and "down.0.downsample.conv.weight" not in tensors:
        raise BadCheckpoint(
            "the sides are halved without a convolution (resamp_with_conv=False), which"
            " UNet2DModel lacks; it is not served"
        )
    return levels, layers


def _width(tensors: Mapping[str, Tensor], level: int) -> int:
    name = f"down.{level}.block.0.conv1.weight"
    if name not in tensors:
        raise BadCheckpoint(f"{name} is missing; the file is damaged")
    return tensors[name].shape[0]


def _flat(name: str, tensor: Tensor) -> Tensor:
    """Make the matrix that a 1x1 convolution of attention is."""
    is_attention = ".attn" in name and tensor.dim() == 4
    return tensor.flatten(1) if is_attention else tensor


def _renamed(name: str, levels: int) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in _OUTSIDE:
        return f"{_OUTSIDE[stem]}.{kind}"
    if match := _SAMPLER.fullmatch(name):
        if match[1] is not None:
            return f"down_blocks.{int(match[1])}.downsamplers.0.conv.{match[3]}"
        return f"up_blocks.{levels - 1 - int(match[2])}.upsamplers.0.conv.{match[3]}"
    if match := _PART.fullmatch(name):
        level, is_block = int(match[2]), match[3] == "block"
        number = level if match[1] == "down" else levels - 1 - level
        part = "resnets" if is_block else "attentions"
        place = f"{match[1]}_blocks.{number}.{part}.{int(match[4])}"
        return f"{place}.{_of_part(name, match[5], is_block)}"
    if match := re.fullmatch(r"mid\.(block_1|attn_1|block_2)\.(.+)", name):
        is_block = match[1] != "attn_1"
        return f"mid_block.{_MIDDLE[match[1]]}.{_of_part(name, match[2], is_block)}"
    raise BadCheckpoint(f"{name} belongs to no network of this layout")


def _of_part(name: str, part: str, is_block: bool) -> str:
    stem, _, kind = part.rpartition(".")
    names: Mapping[str, Any] = _BLOCK if is_block else _ATTENTION
    if stem == "conv_shortcut":
        raise BadCheckpoint(
            f"{name} is a shortcut of 3x3, which UNet2DModel lacks; it is not served"
        )
    if stem not in names:
        raise BadCheckpoint(f"{name} belongs to no network of this layout")
    return f"{names[stem]}.{kind}"
