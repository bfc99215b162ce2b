"""Checkpoints of improved-diffusion and guided-diffusion as folders of diffusers.

Nichol and Dhariwal (2021), Dhariwal and Nichol (2021). Their network is `UNet2DModel`'s with
`scale_shift`, by other names: `input_blocks`, `middle_block`, `output_blocks`. Its shape is read
from the weights, the rest from the flags of the training.

The network for 512 pixels embeds timesteps by more channels than its first level has, which
`UNet2DModel` lacks: `timestep_input_dim` says it. Those of improved-diffusion for ImageNet have as
many heads at every width, which it lacks too: `num_attention_heads` says it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.checkpoints.bad_checkpoint import BadCheckpoint
from models.checkpoints.diffusers_format import pipeline_index
from models.checkpoints.layout import CONFIG, INDEX, SCHEDULER, WEIGHTS, write_json
from models.checkpoints.sources.tensors import write
from models.checkpoints.sources.trainers.openai_flags import TrainerFlags, read_flags

NAME = "improved-diffusion or guided-diffusion"
_MARKS = ("input_blocks.0.0.weight", "middle_block.0.in_layers.0.weight", "out.2.weight")
_BLOCK = re.compile(r"(input|output)_blocks\.(\d+)\.(\d+)\.(.+)")
_RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_OUTSIDE = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_GROUPS = 32
_MOST_PERIOD = 10000


def recognises(names: Iterable[str]) -> bool:
    """Tell by its names whether a file is of one of the two trainers."""
    held = set(names)
    return all(mark in held for mark in _MARKS)


@dataclass(frozen=True, slots=True)
class _Shape:
    """What the weights show.

    Attributes:
        widths: Channels of each level.
        layers: Residual blocks of a level on the way down.
        attends: Whether each level has attention.
        residual_sampling: Whether residual blocks halve and double the sides.
    """

    widths: tuple[int, ...]
    layers: int
    attends: tuple[bool, ...]
    residual_sampling: bool


def write_folder(tensors: Mapping[str, Tensor], text: str | None, folder: Path) -> list[str]:
    """Write the model as a folder of diffusers.

    Args:
        tensors: The weights, by the trainer's names.
        text: The flags of its training, for what the weights do not show.
        folder: The folder to make.

    Returns:
        What was assumed or is not needed, a sentence each.

    Raises:
        BadCheckpoint: `UNet2DModel` is no such network, or flags are missing or wrong; the text
            says why.
    """
    flags = read_flags(text)
    shape = _shape_of(tensors)
    config = _config(tensors, shape, flags)
    renamed = _rename(tensors, shape, flags, config)
    if flags.rescale_timesteps:
        renamed["time_proj.weight"] = _rescaled_sinusoids(
            tensors["time_embed.0.weight"].shape[1], flags.diffusion_steps
        )
    scheduler = _scheduler(config, flags)
    write(renamed, folder / "unet" / WEIGHTS)
    (folder / "scheduler").mkdir()
    write_json(folder / "unet" / CONFIG, config)
    write_json(folder / "scheduler" / SCHEDULER, scheduler)
    write_json(folder / INDEX, pipeline_index(scheduler))
    return list(flags.notes)


def _parts(tensors: Mapping[str, Tensor], way: str) -> list[dict[int, set[str]]]:
    """Collect each block's parts by their number, with the names in each."""
    blocks: dict[int, dict[int, set[str]]] = {}
    for name in tensors:
        if (match := _BLOCK.fullmatch(name)) and match[1] == way:
            blocks.setdefault(int(match[2]), {}).setdefault(int(match[3]), set()).add(match[4])
    if sorted(blocks) != list(range(len(blocks))):
        raise BadCheckpoint(f"{way}_blocks are not numbered from 0 on; the file is damaged")
    return [blocks[number] for number in sorted(blocks)]


def _is_residual(names: set[str]) -> bool:
    return "in_layers.2.weight" in names


def _is_attention(names: set[str]) -> bool:
    return "qkv.weight" in names


def _shape_of(tensors: Mapping[str, Tensor]) -> _Shape:
    down, up = _parts(tensors, "input"), _parts(tensors, "output")
    # a part behind the residual block that is no attention doubles the sides, and ends a level
    samplers = [
        next((p for n, p in sorted(block.items()) if n and not _is_attention(p)), None)
        for block in up
    ]
    ends = [k for k, part in enumerate(samplers) if part is not None]
    per_level = ends[0] + 1 if ends else len(up)
    levels, rest = divmod(len(up), per_level)
    if rest or ends != [per_level * (i + 1) - 1 for i in range(levels - 1)] or per_level < 2:
        raise BadCheckpoint("its levels have different numbers of blocks, or none of their own")
    if len(down) != len(up):
        raise BadCheckpoint(f"{len(down)} input_blocks do not fit {len(up)} output_blocks")
    layers = per_level - 1
    widths, attends = [], []
    for level in range(levels):
        first = 1 + level * per_level
        blocks = [*down[first : first + layers], *_on_the_way_up(up, levels, per_level, level)]
        width = tensors[f"input_blocks.{first}.0.out_layers.3.weight"].shape[0]
        attention = {any(_is_attention(part) for part in block.values()) for block in blocks}
        if len(attention) > 1:
            raise BadCheckpoint(f"level {level} has attention in some of its blocks only")
        widths.append(width)
        attends.append(attention.pop())
    part = samplers[ends[0]] if ends else None
    residual = part is not None and _is_residual(part)
    return _Shape(tuple(widths), layers, tuple(attends), residual)


def _on_the_way_up(
    up: list[dict[int, set[str]]], levels: int, per_level: int, level: int
) -> list[dict[int, set[str]]]:
    first = (levels - 1 - level) * per_level
    return up[first : first + per_level]


def _config(tensors: Mapping[str, Tensor], shape: _Shape, flags: TrainerFlags) -> dict[str, Any]:
    first = tensors["input_blocks.0.0.weight"]
    if first.shape[0] != shape.widths[0]:
        raise BadCheckpoint(
            f"its first convolution puts out {first.shape[0]} channels, and its first level has"
            f" {shape.widths[0]}; the file is damaged"
        )
    inner, base = tensors["time_embed.0.weight"].shape
    features = tensors["input_blocks.1.0.emb_layers.1.weight"].shape[0]
    sampling = "resnet" if shape.residual_sampling else "conv"
    classes = tensors.get("label_emb.weight")
    return {
        "_class_name": "UNet2DModel",
        "_diffusers_version": "0.35.0",
        "sample_size": flags.image_size,
        "in_channels": first.shape[1],
        "out_channels": tensors["out.2.weight"].shape[0],
        "block_out_channels": list(shape.widths),
        "layers_per_block": shape.layers,
        "down_block_types": [_block("Down", attends, sampling) for attends in shape.attends],
        "up_block_types": [_block("Up", attends, sampling) for attends in shape.attends[::-1]],
        "downsample_type": sampling,
        "upsample_type": sampling,
        **_heads(shape, flags),
        "norm_num_groups": _GROUPS,
        "attn_norm_num_groups": _GROUPS,
        "norm_eps": 1e-5,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "time_embedding_type": "learned" if flags.rescale_timesteps else "positional",
        "time_embedding_dim": inner,
        **({} if base == shape.widths[0] else {"timestep_input_dim": base}),
        "num_train_timesteps": flags.diffusion_steps if flags.rescale_timesteps else None,
        "resnet_time_scale_shift": "scale_shift" if features == 2 * shape.widths[0] else "default",
        "num_class_embeds": None if classes is None else classes.shape[0],
    }


def _block(way: str, attends: bool, sampling: str) -> str:
    if attends:
        return f"Attn{way}Block2D"
    if sampling == "resnet":
        return f"Resnet{way}sampleBlock2D"
    return f"{way}Block2D"


def _heads(shape: _Shape, flags: TrainerFlags) -> dict[str, int | None]:
    """Say how attention is parted: by the channels of a head, or by their number at any width."""
    widths = {w for w, attends in zip(shape.widths, shape.attends, strict=True) if attends}
    widths.add(shape.widths[-1])
    if flags.num_head_channels is not None:
        return {"attention_head_dim": flags.num_head_channels}
    heads = flags.num_heads or 1
    for width in sorted(widths):
        if width % heads:
            raise BadCheckpoint(f"--num_heads {heads} does not divide {width} channels; correct it")
    if len(widths) > 1:
        return {"attention_head_dim": None, "num_attention_heads": heads}
    return {"attention_head_dim": widths.pop() // heads}


def _rename(
    tensors: Mapping[str, Tensor], shape: _Shape, flags: TrainerFlags, config: Mapping[str, Any]
) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        if stem in _OUTSIDE:
            renamed[f"{_OUTSIDE[stem]}.{kind}"] = tensor
        elif name == "label_emb.weight":
            renamed["class_embedding.weight"] = tensor
        else:
            place, part = _place(name, shape)
            renamed |= _of_part(place, part, tensor, flags)
    return renamed


def _place(name: str, shape: _Shape) -> tuple[str, str]:
    """Find where a part of a block stands in `UNet2DModel`, and its name within the part."""
    if match := re.fullmatch(r"middle_block\.([012])\.(.+)", name):
        place = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}[match[1]]
        return f"mid_block.{place}", match[2]
    match = _BLOCK.fullmatch(name)
    if match is None:
        raise BadCheckpoint(f"{name} belongs to no network of the two trainers")
    way, block, number, part = match[1], int(match[2]), int(match[3]), match[4]
    per_level = shape.layers + 1
    if way == "input":
        level, j = divmod(block - 1, per_level)
        if j == shape.layers:
            return f"down_blocks.{level}.downsamplers.0", part
        kind = "attentions" if number else "resnets"
        return f"down_blocks.{level}.{kind}.{j}", part
    level, j = divmod(block, per_level)
    if number == 0:
        return f"up_blocks.{level}.resnets.{j}", part
    kind = "attentions" if part.startswith(("norm.", "qkv.", "proj_out.")) else "upsamplers"
    return f"up_blocks.{level}.{kind}.{j if kind == 'attentions' else 0}", part


def _of_part(place: str, part: str, tensor: Tensor, flags: TrainerFlags) -> dict[str, Tensor]:
    stem, _, kind = part.rpartition(".")
    if stem in _RESIDUAL:
        return {f"{place}.{_RESIDUAL[stem]}.{kind}": tensor}
    # the convolutions that halve and double the sides
    if stem in ("op", "conv"):
        return {f"{place}.conv.{kind}": tensor}
    if stem == "norm":
        return {f"{place}.group_norm.{kind}": tensor}
    flat = tensor.flatten(1) if tensor.dim() > 1 else tensor
    if stem == "proj_out":
        return {f"{place}.to_out.0.{kind}": flat}
    if stem == "qkv":
        three = _split(flat, flags)
        return {f"{place}.{to}.{kind}": t for to, t in zip(_QKV, three, strict=True)}
    raise BadCheckpoint(f"{place}: {part} belongs to no network of the two trainers")


_QKV = ("to_q", "to_k", "to_v")


def _split(qkv: Tensor, flags: TrainerFlags) -> list[Tensor]:
    """Part queries, keys and values: rows of heads lie together, or heads lie in each third."""
    if flags.use_new_attention_order:
        return list(qkv.chunk(3))
    channels = qkv.shape[0] // 3
    width = flags.num_head_channels or channels // (flags.num_heads or 1)
    parted = qkv.reshape(channels // width, 3, width, *qkv.shape[1:])
    return [parted[:, i].flatten(0, 1) for i in range(3)]


def _rescaled_sinusoids(width: int, T: int) -> Tensor:
    """Compute what the network sees of each timestep, (T, width): t is rescaled to 1000 / T."""
    half = width // 2
    i = torch.arange(half, dtype=torch.float32)
    frequencies = torch.exp(-math.log(_MOST_PERIOD) * i / half)
    angles = (torch.arange(T).float() * (1000.0 / T))[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def _scheduler(config: Mapping[str, Any], flags: TrainerFlags) -> dict[str, Any]:
    T = flags.diffusion_steps
    learned = config["out_channels"] == 2 * config["in_channels"]
    fixed = "fixed_small" if flags.sigma_small else "fixed_large"
    betas: dict[str, Any] = {"beta_schedule": "squaredcos_cap_v2"}
    if flags.noise_schedule == "linear":
        scale = 1000 / T
        betas = {
            "beta_schedule": "linear",
            "beta_start": scale * 0.0001,
            "beta_end": min(scale * 0.02, 0.999),
        }
    return {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": "0.35.0",
        "num_train_timesteps": T,
        **betas,
        "prediction_type": "sample" if flags.predict_xstart else "epsilon",
        "variance_type": "learned_range" if learned else fixed,
        "clip_sample": True,
        "timestep_spacing": "linspace",
    }
