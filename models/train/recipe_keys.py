"""What the keys of a recipe mean that are not its own, and a recipe with every key explained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from models.train.recipe import ONE_HEAD, recipe_keys

# Keys of the network, of the schedule and of the card belong to other classes, which describe
# them for clients of the API, or not at all.
_MEANINGS = {
    "network.sample_size": "side of the image in pixels, 1 to 2048, or height and width; it can be"
    " halved once for each level but the first",
    "network.in_channels": "1 for grey, 2 for grey with alpha, 3 for RGB, 4 for RGBA",
    "network.out_channels": "the same as `in_channels`",
    "network.block_out_channels": "width of each level, 1 to 12 levels of 1 to 8192 channels;"
    " the first is 2 or more",
    "network.layers_per_block": "layers in each level, 1 to 64",
    "network.down_block_types": "one for each level, on the way down; `Attn`: with attention;"
    " `Resnet`: halved by a residual block; `Skip`: with a side path",
    "network.up_block_types": "one for each level, on the way up",
    "network.attention_head_dim": "channels of one head, at most the width of every level that has"
    f' attention. `"{ONE_HEAD}"`: one head over all channels, as in the paper',
    "network.downsample_padding": "0 or 1; 0 pads below and to the right only",
    "network.flip_sin_to_cos": "in the features of t, cosines come before sines",
    "network.freq_shift": "shift of the frequencies of t; less than half of the first width",
    "network.norm_eps": "epsilon of the group norms, 1e-12 to 1",
    "network.norm_num_groups": "groups of the group norms, 1 to 8192; divides every width",
    "network.dropout": "dropout while training, 0 or more and less than 1",
    "network.add_attention": "attention in the middle block",
    "network.center_input_sample": "the network sees 2 x - 1",
    "network.time_embedding_type": 'what t is turned into: `"positional"`, `"fourier"` or'
    ' `"learned"`',
    "network.time_embedding_dim": "channels of the time embedding; four times the first width if"
    " left out",
    "network.timestep_input_dim": "numbers that t is turned into, 2 or more; as many as the first"
    " width if left out. diffusers does not read such a network",
    "network.num_attention_heads": "heads of every attention, each width of which they divide, in"
    f' place of `attention_head_dim`, which is then `"{ONE_HEAD}"`. diffusers does not know it',
    "network.mid_block_type": 'the middle block, `"UNetMidBlock2D"`',
    "network.mid_block_scale_factor": "what the middle block's sums are divided by",
    "network.downsample_type": '`"conv"` or `"resnet"`: what halves the sides of `AttnDownBlock2D`',
    "network.upsample_type": '`"conv"` or `"resnet"`: what doubles the sides of `AttnUpBlock2D`',
    "network.act_fn": 'activation: `"silu"`, `"mish"`, `"gelu"` or `"relu"`',
    "network.attn_norm_num_groups": "groups of the norm of the middle's attention",
    "network.resnet_time_scale_shift": '`"default"` adds the time features, `"scale_shift"` scales'
    " and shifts by them",
    "network.class_embed_type": "must be left out",
    "network.num_class_embeds": "rows of the embedding of classes: as many as there are classes,"
    " and one for none where `training.label_dropout` is not 0; found in the data if left out",
    "network.num_train_timesteps": 'timesteps of a `"learned"` embedding',
    "schedule.kind": 'how beta_t grows with t: `"linear"`, `"scaled_linear"`, `"cosine"`,'
    ' `"sigmoid"` or `"laplace"`',
    "schedule.T": "timesteps, 1 to 100,000",
    "schedule.beta_start": "beta_1, between 0 and 1; refused with cosine and laplace",
    "schedule.beta_end": "beta_T, between 0 and 1; refused with cosine and laplace",
    "schedule.zero_snr": "alpha_bar is rescaled to end at 0; the prediction must not be epsilon",
    "card.name": "the model's name: lower-case letters, digits, `.`, `_` and `-`, at most 64,"
    " a letter or digit first",
    "card.defaults.sampler": 'sampler of jobs that name none: `"ddpm"`, `"ddim"` or `"dpmpp_2m"`',
    "card.defaults.steps": "steps of jobs that name no number, 1 to `schedule.T`; without"
    " `card.defaults` 100, or `schedule.T`",
    "card.defaults.variance": 'reverse variance of the ddpm sampler: `"fixed_small"` or'
    ' `"fixed_large"`',
    "card.defaults.eta": "noise of the ddim sampler, 0 to 1",
}
_TYPES = {"array": "list"}


def meaning(name: str) -> str:
    """Say what a key means."""
    text: str = _MEANINGS.get(name) or recipe_keys()[name].get("description", "")
    return text


def type_of(name: str) -> str:
    """Name the type of a key's value in TOML."""
    if name == "network.attention_head_dim":
        return f'integer or `"{ONE_HEAD}"`'
    if name == "network.sample_size":
        return "integer or list of integers"
    kind = recipe_keys()[name]
    items = kind.get("items", {}).get("type")
    text = _TYPES.get(kind.get("type", "value"), kind.get("type", "value"))
    return f"{text} of {items}s" if items else text


def toml(value: object) -> str:
    """Write a value as TOML: what JSON and TOML have in common."""
    return json.dumps(value, ensure_ascii=False)


def template(values: Mapping[str, Any]) -> str:
    """Write a recipe of these values, by key. Others stand there as comments, with their defaults.

    Every key has its meaning above it.
    """
    lines = ["# A recipe for `ddpm train`. A key behind # has the value that stands there.", ""]
    section = ""
    for name, kind in recipe_keys().items():
        prefix, _, key = name.rpartition(".")
        if prefix != section:
            is_used = any(used.startswith(f"{prefix}.") for used in values)
            lines += ["", f"[{prefix}]" if is_used else f"# [{prefix}]"]
            section = prefix
        lines.append(f"# {meaning(name)}")
        if name in values:
            lines.append(f"{key} = {toml(values[name])}")
        elif kind["default"] is None:
            lines.append(f"# {key} =")
        else:
            lines.append(f"# {key} = {toml(kind['default'])}")
    return "\n".join(lines) + "\n"
