"""Checkpoints of `denoising-diffusion-pytorch` as folders with a network of ours.

Its `Trainer` saves a `GaussianDiffusion`: the network under `model.`, and the process as buffers.
Widths, heads, memory, betas and what is predicted are read from them. Its other options do not
show: their defaults are taken and reported, unless flags state them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.checkpoints.bad_checkpoint import BadCheckpoint
from models.checkpoints.layout import CONFIG, SCHEDULER, WEIGHTS, write_json
from models.checkpoints.sources.tensors import write
from models.checkpoints.sources.trainers.flags import Flags
from models.diffusion.options import Prediction
from models.networks.linear_attention_config import LINEAR_ATTENTION

NAME = "denoising-diffusion-pytorch"
_PREFIX = "model."
_MARKS = ("init_conv.weight", "time_mlp.1.weight", "mid_attn.to_qkv.weight", "final_conv.weight")
# the package's arguments that a file may not show
_FLAGS = (
    "attn_heads",
    "auto_normalize",
    "beta_schedule",
    "objective",
    "resnet_block_groups",
    "sinusoidal_pos_emb_theta",
    "timesteps",
)
_OBJECTIVES: dict[str, Prediction] = {
    "pred_noise": "epsilon",
    "pred_x0": "sample",
    "pred_v": "v_prediction",
}
_GROUPS = 8
_THETA = 10000
# What counts as the same float32, after a computation in another order.
_CLOSE = 1e-5
# of a schedule that a card can have
_MOST_T = 100_000
# Parts that mean another network, with the reason for which it is not served.
_REFUSED = {
    r"time_mlp\.0\.weights": "it embeds continuous time, of which there are no timesteps",
    r"(classes_emb|null_classes_emb|classes_mlp)\b.*": "it takes classes and guidance of its own",
    r".*\.fn\.(fn|norm)\..*": "it is of a release before 1.8, whose layers were others",
}


def recognises(names: Iterable[str]) -> bool:
    """Tell by its names whether a file is of this trainer, be it the process or the network."""
    held = {name.removeprefix(_PREFIX) for name in names}
    # before 1.8 attention was wrapped
    return {_MARKS[0], _MARKS[1], _MARKS[3]} <= held


def write_folder(tensors: Mapping[str, Tensor], flags: str | None, folder: Path) -> list[str]:
    """Write the model as a folder, without `sample_size`, which no file holds.

    Args:
        tensors: The weights, by the trainer's names.
        flags: Arguments of the training that weights do not show.
        folder: The folder to make.

    Returns:
        What was found and assumed, a sentence each.

    Raises:
        BadCheckpoint: No network here is like it; the text says why.
    """
    given = Flags.parse(flags or "", _FLAGS, "this trainer that its files do not show")
    is_process = any(name.startswith(_PREFIX) for name in tensors)
    weights = {
        name.removeprefix(_PREFIX): tensor
        for name, tensor in tensors.items()
        if name.startswith(_PREFIX) or not is_process
    }
    buffers = {name: t for name, t in tensors.items() if not name.startswith(_PREFIX)}
    _check_served(weights)
    _check_flags(given, weights, buffers)
    notes: list[str] = []
    config = _config(weights, given, notes)
    if not given.truth("auto_normalize", absent=True):
        raise BadCheckpoint(
            "--auto_normalize False: its pictures go from 0 to 1, and served ones from -1 to 1;"
            " it is not served"
        )
    if "auto_normalize" not in given.given:
        notes.append("assumed auto_normalize=True: pictures go from -1 to 1 inside")
    write(weights, folder / "unet" / WEIGHTS)
    write_json(folder / "unet" / CONFIG, config)
    (folder / "scheduler").mkdir()
    learned = config["out_channels"] > config["in_channels"]
    betas = buffers["betas"].double() if "betas" in buffers else _betas_of_flags(given)
    process = {
        **_schedule(betas, notes),
        "prediction_type": _prediction(buffers, betas, learned, given, notes),
        "variance_type": "learned_range" if learned else "fixed_small",
        "clip_sample": True,
        "timestep_spacing": "linspace",
    }
    write_json(folder / "scheduler" / SCHEDULER, process)
    return notes


def _check_served(weights: Mapping[str, Tensor]) -> None:
    for pattern, reason in _REFUSED.items():
        if found := next((name for name in weights if re.fullmatch(pattern, name)), None):
            raise BadCheckpoint(f"{found}: {reason}; it is not served")
    for name in _MARKS:
        if name not in weights:
            raise BadCheckpoint(f"{name} is missing; the file is damaged")
    for name, dimensions in (("init_conv", 4), ("final_conv", 4), ("time_mlp.1", 2)):
        if weights[f"{name}.weight"].dim() != dimensions:
            raise BadCheckpoint(f"{name}.weight has not {dimensions} dimensions")
    taken, given = weights["init_conv.weight"].shape[1], weights["final_conv.weight"].shape[0]
    if taken == 2 * given:
        raise BadCheckpoint(
            f"init_conv takes {taken} channels and final_conv returns {given}: it was trained with"
            " self_condition=True, so that it sees its last estimate too; it is not served"
        )


def _check_flags(
    flags: Flags, weights: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
) -> None:
    """Refuse flags of what the file itself shows, as they would have no effect."""
    shown = set()
    if "betas" in buffers:
        shown |= {"timesteps", "beta_schedule"}
    if "downs.0.2.mem_kv" in weights:
        shown.add("attn_heads")
    if "downs.0.0.block1.norm.weight" not in weights:
        shown.add("resnet_block_groups")
    for name in sorted(shown & flags.given.keys()):
        raise BadCheckpoint(f"--flags: the file itself shows --{name}; leave it out")


def _config(weights: Mapping[str, Tensor], flags: Flags, notes: list[str]) -> dict[str, Any]:
    levels = _levels(weights)
    places = [f"downs.{level}.2" for level in range(levels)]
    heads, widths, tokens = _heads(weights, places, flags)
    last = levels - 1
    passed = [
        weights[name].shape[0]
        for level in range(levels)
        if (name := f"downs.{level}.3{'' if level == last else '.1'}.weight") in weights
    ]
    if len(passed) != levels:
        raise BadCheckpoint("a level of downs passes nothing on; the file is damaged")
    groups = None
    if "downs.0.0.block1.norm.weight" in weights:
        groups = _stated(flags, "resnet_block_groups", _GROUPS, notes)
    theta = _stated(flags, "sinusoidal_pos_emb_theta", _THETA, notes)
    return {
        "_class_name": LINEAR_ATTENTION,
        "sample_size": None,
        "in_channels": weights["init_conv.weight"].shape[1],
        "out_channels": weights["final_conv.weight"].shape[0],
        "base_channels": weights["time_mlp.1.weight"].shape[1],
        "stem_channels": weights["init_conv.weight"].shape[0],
        "block_out_channels": passed,
        "full_attention": [f"{place}.to_out.weight" in weights for place in places],
        "attention_heads": heads,
        "attention_head_dim": widths,
        "memory_tokens": tokens,
        "norm_num_groups": groups,
        "theta": theta,
    }


def _stated(flags: Flags, name: str, default: int, notes: list[str]) -> int:
    """Read a number that no file shows, or take its default and say so."""
    if name not in flags.given:
        notes.append(f"assumed {name}={default}, the default")
        return default
    number = flags.number(name)
    if number is None:
        raise BadCheckpoint(f"--flags: --{name} {flags.given[name]} is not above 0")
    return number


def _levels(weights: Mapping[str, Tensor]) -> int:
    numbers = {int(m[1]) for name in weights if (m := re.match(r"downs\.(\d{1,3})\.", name))}
    if not numbers or numbers != set(range(len(numbers))):
        raise BadCheckpoint("downs are not numbered from 0 on; the file is damaged")
    return len(numbers)


def _heads(
    weights: Mapping[str, Tensor], places: list[str], flags: Flags
) -> tuple[list[int], list[int], int]:
    """Read heads, their channels, and the tokens of memory.

    Without memory, as before 1.9, nothing but flags tells the heads.
    """
    heads, widths, tokens = [], [], set()
    for place in places:
        projection, memory = weights.get(f"{place}.to_qkv.weight"), weights.get(f"{place}.mem_kv")
        if projection is None:
            raise BadCheckpoint(f"{place}.to_qkv.weight is missing; the file is damaged")
        if memory is None:
            count = flags.number("attn_heads")
            if count is None:
                raise BadCheckpoint(
                    f"{place} has no mem_kv, from which heads are read; give --flags"
                    " '--attn_heads 4', or as many as its training had"
                )
            tokens.add(0)
        elif memory.dim() != 4:
            raise BadCheckpoint(f"{place}.mem_kv has not 4 dimensions; the file is damaged")
        else:
            count = memory.shape[1]
            tokens.add(memory.shape[2 if f"{place}.to_out.weight" in weights else 3])
        width, rest = divmod(projection.shape[0], 3 * count) if count else (0, 1)
        if rest:
            raise BadCheckpoint(
                f"{place}.to_qkv has {projection.shape[0]} rows, which are no three times"
                f" {count} heads"
            )
        heads.append(count)
        widths.append(width)
    if len(tokens) > 1:
        raise BadCheckpoint(f"its levels have memories of {sorted(tokens)} tokens; they are alike")
    return heads, widths, tokens.pop()


def _betas_of_flags(flags: Flags) -> Tensor:
    """Compute the betas (T,) of a file that holds the network alone."""
    T, name = flags.number("timesteps"), flags.given.get("beta_schedule")
    schedules = {"linear": _linear, "cosine": _cosine, "sigmoid": _sigmoid}
    if T is None or T > _MOST_T or name not in schedules:
        raise BadCheckpoint(
            "the file holds the network without its process; give --flags '--timesteps 1000"
            f" --beta_schedule sigmoid --objective pred_v', or what its training had, of"
            f" {', '.join(schedules)} and {', '.join(_OBJECTIVES)}"
        )
    return schedules[name](T)


def _schedule(betas: Tensor, notes: list[str]) -> dict[str, Any]:
    """Make what a scheduler's file says of betas (T,), by the name of their schedule if it can."""
    if betas.dim() != 1 or not 1 <= len(betas) <= _MOST_T:
        raise BadCheckpoint(
            f"betas have the shape {list(betas.shape)}, which is no list of 1 to {_MOST_T}"
        )
    T = len(betas)
    common = {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": "0.35.0",
        "num_train_timesteps": T,
    }
    if _is_close(betas, _linear(T)):
        return {**common, "beta_schedule": "linear", "beta_start": 0.1 / T, "beta_end": 20 / T}
    if _is_close(betas, _cosine(T)):
        return {**common, "beta_schedule": "squaredcos_cap_v2"}
    if _is_close(betas, exact := _sigmoid(T)):
        notes.append("the schedule is the sigmoid of Jabri et al. (2022), written out as betas")
        return {**common, "trained_betas": exact.tolist()}
    notes.append("the schedule is none that the package names, and is taken from its betas")
    return {**common, "trained_betas": betas.tolist()}


def _is_close(betas: Tensor, others: Tensor) -> bool:
    return bool(torch.isclose(betas, others, rtol=_CLOSE, atol=0).all())


def _linear(T: int) -> Tensor:
    return torch.linspace(0.1 / T, 20 / T, T, dtype=torch.float64)


def _cosine(T: int) -> Tensor:
    """Compute the betas of Nichol and Dhariwal (2021), Eq. 17."""
    edges = torch.linspace(0, T, T + 1, dtype=torch.float64) / T
    return _betas(torch.cos((edges + 0.008) / 1.008 * math.pi / 2) ** 2)


def _sigmoid(T: int) -> Tensor:
    """Compute the betas of Jabri et al. (2022), from -3 to 3, of which the package rounds ends."""
    edges = torch.linspace(-3, 3, T + 1, dtype=torch.float64)
    start, end = (torch.tensor(edge).sigmoid().double() for edge in (-3.0, 3.0))
    return _betas((end - edges.sigmoid()) / (end - start))


def _betas(alpha_bar: Tensor) -> Tensor:
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(0, 0.999)


def _prediction(
    buffers: Mapping[str, Tensor],
    betas: Tensor,
    learned: bool,
    flags: Flags,
    notes: list[str],
) -> Prediction:
    """Find what the network predicts: from the weights of its loss, else from the flags."""
    objective = flags.given.get("objective")
    if objective is not None and objective not in _OBJECTIVES:
        raise BadCheckpoint(
            f"--objective {objective} is none of the trainer's; use {', '.join(_OBJECTIVES)}"
        )
    if learned:
        # LearnedGaussianDiffusion trains eps, whatever objective it is given
        notes.append("with a learned variance the network predicts epsilon")
        return "epsilon"
    shown = _shown_by_loss(buffers, betas)
    stated = None if objective is None else _OBJECTIVES[objective]
    if shown is not None and stated not in (None, shown):
        raise BadCheckpoint(f"--objective {objective}: by its loss_weight it predicts {shown}")
    if shown is not None:
        notes.append(f"by its loss_weight the network predicts {shown}")
    found = shown or stated
    if found is None:
        raise BadCheckpoint(
            "nothing in the file shows what the network predicts; give --flags '--objective"
            f" pred_v', or what its training had, of {', '.join(_OBJECTIVES)}"
        )
    return found


def _shown_by_loss(buffers: Mapping[str, Tensor], betas: Tensor) -> Prediction | None:
    """Read what the network predicts from the weights of its loss. None: they do not show it.

    With SNR for alpha_bar / (1 - alpha_bar), they are 1 for eps, SNR for x_0, and SNR / (SNR + 1)
    for v. A bound on SNR changes them, but not at timesteps whose SNR is below 1.
    """
    weight = buffers.get("loss_weight")
    if weight is None or weight.shape != betas.shape:
        return None
    alpha_bar = (1 - betas).cumprod(0)
    snr = alpha_bar / (1 - alpha_bar)
    # those at which the three can be told apart
    shows = (snr < 1) & (snr > 1e-2)
    expected: dict[Prediction, Tensor] = {
        "epsilon": torch.ones_like(snr),
        "sample": snr,
        "v_prediction": snr / (snr + 1),
    }
    given = weight.double()[shows]
    fits = [
        name
        for name, values in expected.items()
        if torch.isclose(given, values[shows], rtol=1e-3, atol=0).all()
    ]
    return fits[0] if len(fits) == 1 else None
