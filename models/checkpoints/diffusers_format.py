"""Reading and writing a model folder in diffusers' format.

`DDPMPipeline.from_pretrained` reads the same folder:

    <name>/card.json
    <name>/model_index.json
    <name>/unet/config.json
    <name>/unet/diffusion_pytorch_model.safetensors
    <name>/scheduler/scheduler_config.json

The flat form is read too: config.json and the weights in one folder, as
`UNet2DModel.save_pretrained` writes them. Weights must be safetensors, as a pickle runs code when
it is opened.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.checkpoints.catalog import ScheduleCard, sha256_of
from models.diffusion.options import FixedVariance, Prediction
from models.diffusion.schedule import LINEAR_END, LINEAR_START, LINEAR_T, Schedule
from models.networks.unet import UNet
from models.networks.unet_config import UNetConfig, UnsupportedConfig

WEIGHTS = "diffusion_pytorch_model.safetensors"
_DTYPES = ("F64", "F32", "F16", "BF16")
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_BETA_SCHEDULES = {"linear": "linear", "squaredcos_cap_v2": "cosine"}
# beta_start and beta_end if a scheduler's file has none
_PAPERS = (LINEAR_START, LINEAR_END)
_LATENTS = (0.00085, 0.012)
# The schedulers of diffusers whose process is the paper's, which keeps the variance of x_t. Each
# has its betas for a file without them.
SCHEDULERS = {
    "DDPMScheduler": _PAPERS,
    "DDPMParallelScheduler": _PAPERS,
    "DDIMScheduler": _PAPERS,
    "DDIMInverseScheduler": _PAPERS,
    "DDIMParallelScheduler": _PAPERS,
    "DEISMultistepScheduler": _PAPERS,
    "DPMSolverMultistepScheduler": _PAPERS,
    "DPMSolverMultistepInverseScheduler": _PAPERS,
    "DPMSolverSinglestepScheduler": _PAPERS,
    "DPMSolverSDEScheduler": _LATENTS,
    "EulerDiscreteScheduler": _PAPERS,
    "EulerAncestralDiscreteScheduler": _PAPERS,
    "HeunDiscreteScheduler": _LATENTS,
    "KDPM2DiscreteScheduler": _LATENTS,
    "KDPM2AncestralDiscreteScheduler": _LATENTS,
    "LMSDiscreteScheduler": _PAPERS,
    "PNDMScheduler": _PAPERS,
    "SASolverScheduler": _PAPERS,
    "UniPCMultistepScheduler": _PAPERS,
}
# Options of these schedulers that change the process, with the only value that plans implement.
_FIXED_SCHEDULER: dict[str, Any] = {
    "trained_betas": None,
    "clip_sample_range": 1.0,
    "thresholding": False,
    "rescale_betas_zero_snr": False,
    "timestep_type": "discrete",
    "use_flow_sigmas": False,
    "shift": 1.0,
    "sigma_data": None,
    "sigma_min": None,
    "sigma_max": None,
}
# DDPM's and DDIM's schedulers clip. The other solvers do not, and only Heun's file says so.
_FIXED_WHERE_CLIPPED = _FIXED_SCHEDULER | {"clip_sample": True}


class BadCheckpoint(Exception):
    """A model folder that cannot be loaded; the text names file, key and remedy."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A network ready to run, and the process that it was trained on.

    Attributes:
        net: The network in eval mode, float32, on the CPU.
        schedule: Its forward process.
        prediction: What its output estimates.
        sha256: The hash of its weights.
    """

    net: UNet
    schedule: Schedule
    prediction: Prediction
    sha256: str


def load(folder: Path, sha256: str | None = None) -> Checkpoint:
    """Load a model folder.

    Args:
        folder: The model folder.
        sha256: What the hash of the weights must be. None: any.

    Raises:
        BadCheckpoint: A file is missing, damaged, of another hash, or of a network or process that
            is not supported.
    """
    try:
        return _load(folder, sha256)
    except OSError as error:
        raise BadCheckpoint(
            f"{error.filename or folder} cannot be read ({error.strerror or error});"
            " give the user of this process the right to"
        ) from None


def _load(folder: Path, sha256: str | None) -> Checkpoint:
    config_path, weights_path = network_files(folder)
    hashed = sha256_of(weights_path)
    if sha256 is not None and hashed != sha256:
        raise BadCheckpoint(
            f"{weights_path} has sha256 {hashed}, its card says {sha256};"
            " restore the file or write the card anew"
        )
    try:
        # The meta device takes no memory before the weights are known to fit.
        with torch.device("meta"):
            net = UNet(UNetConfig.from_diffusers(_read_json(config_path)))
    except UnsupportedConfig as error:
        raise BadCheckpoint(f"{config_path}: {error}") from None
    found = _read_weights(net.state_dict(), weights_path)
    net.to_empty(device="cpu").load_state_dict(found)
    card, prediction = read_scheduler(folder)
    return Checkpoint(net.eval().requires_grad_(False), schedule_of(card), prediction, hashed)


def save(
    folder: Path,
    config: UNetConfig,
    state: Mapping[str, Tensor],
    schedule: ScheduleCard,
    prediction: Prediction,
    variance: FixedVariance = "fixed_small",
) -> str:
    """Write a model folder, all but its card.

    Args:
        folder: The folder, which is made if it is missing.
        config: The network's options.
        state: The network's weights by name.
        schedule: The process that it was trained on.
        prediction: What its output estimates.
        variance: The reverse variance that the folder names.

    Returns:
        The sha256 of the weights.

    Raises:
        OSError: A file cannot be written.
        safetensors.SafetensorError: The weights cannot be written.
    """
    (folder / "unet").mkdir(parents=True, exist_ok=True)
    (folder / "scheduler").mkdir(exist_ok=True)
    weights = folder / "unet" / WEIGHTS
    _write_json(folder / "unet" / "config.json", config.to_diffusers())
    tensors = {k: v.detach().float().cpu().contiguous() for k, v in state.items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    # safetensors lets no other user read what it writes
    shutil.copymode(folder / "unet" / "config.json", weights)
    scheduler = _scheduler_config(schedule, prediction, variance)
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    index = {
        "_class_name": "DDPMPipeline",
        "_diffusers_version": "0.35.0",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    _write_json(folder / "model_index.json", index)
    return sha256_of(weights)


def schedule_of(card: ScheduleCard) -> Schedule:
    """Compute the schedule that a card describes."""
    if card.kind == "cosine":
        return Schedule.cosine(card.T)
    start = LINEAR_START if card.beta_start is None else card.beta_start
    end = LINEAR_END if card.beta_end is None else card.beta_end
    return Schedule.linear(card.T, start, end)


def read_variance(folder: Path) -> FixedVariance:
    """Read the reverse variance that a checkpoint was published with.

    It is fixed_small if the file names none, or one that is not supported.

    Raises:
        BadCheckpoint: The scheduler's file is damaged.
    """
    _, config = _scheduler_file(folder)
    return "fixed_large" if config.get("variance_type") == "fixed_large" else "fixed_small"


def read_scheduler(folder: Path) -> tuple[ScheduleCard, Prediction]:
    """Read the process that a checkpoint was trained on.

    It is in scheduler/scheduler_config.json, or next to the weights. Without that file, it is the
    paper's.

    Raises:
        BadCheckpoint: The file is damaged, or its process is not supported.
    """
    path, config = _scheduler_file(folder)
    scheduler = config.get("_class_name", "DDPMScheduler")
    if scheduler not in list(SCHEDULERS):
        raise BadCheckpoint(
            f"{path}: _class_name={scheduler!r} is of another process than DDPMScheduler's;"
            " only that one is sampled"
        )
    fixed = _FIXED_WHERE_CLIPPED if scheduler.startswith(("DDPM", "DDIM")) else _FIXED_SCHEDULER
    for key, only in fixed.items():
        if config.get(key, only) != only:
            raise BadCheckpoint(f"{path}: {key}={config[key]!r} is not supported; only {only!r} is")
    name = config.get("beta_schedule", "linear")
    if name not in list(_BETA_SCHEDULES):
        raise BadCheckpoint(
            f"{path}: beta_schedule={name!r} is not supported; use {' or '.join(_BETA_SCHEDULES)}"
        )
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "sample", "v_prediction"):
        raise BadCheckpoint(
            f"{path}: prediction_type={prediction!r} is not supported;"
            " use epsilon, sample or v_prediction"
        )
    wanted = {"kind": _BETA_SCHEDULES[name], "T": config.get("num_train_timesteps", LINEAR_T)}
    if name == "linear":
        start, end = SCHEDULERS[scheduler]
        wanted["beta_start"] = config.get("beta_start", start)
        wanted["beta_end"] = config.get("beta_end", end)
    try:
        card = ScheduleCard.model_validate(wanted)
    except ValidationError as error:
        fault = error.errors()[0]
        key = str(fault["loc"][0]).replace("T", "num_train_timesteps")
        raise BadCheckpoint(
            f"{path}: {key}={fault['input']!r}: {fault['msg']}; correct it"
        ) from None
    schedule = schedule_of(card)
    if not schedule.can_be_reversed:
        ends = f"{schedule.alpha_bar[0]:g} to {schedule.alpha_bar[-1]:g}"
        raise BadCheckpoint(
            f"{path}: alpha_bar goes from {ends} and cannot be reversed;"
            " correct num_train_timesteps, beta_start and beta_end"
        )
    return card, prediction


def _scheduler_file(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Read the scheduler's file: its path and content, which is empty if there is none."""
    nested = folder / "scheduler" / "scheduler_config.json"
    flat = folder / "scheduler_config.json"
    path = nested if nested.is_file() or not flat.is_file() else flat
    return path, _read_json(path) if path.is_file() else {}


def network_files(folder: Path) -> tuple[Path, Path]:
    """Find the network's configuration and its weights.

    Raises:
        BadCheckpoint: One of them is missing.
    """
    for base in (folder / "unet", folder):
        if (base / "config.json").is_file():
            if (base / WEIGHTS).is_file():
                return base / "config.json", base / WEIGHTS
            raise BadCheckpoint(
                f"{base} holds no {WEIGHTS};"
                " pickled weights are not read: save the model with safe_serialization=True"
            )
    raise BadCheckpoint(
        f"{folder} holds no unet/config.json and no config.json;"
        " give a folder in diffusers' UNet2DModel format"
    )


def _read_weights(wanted: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Read weights in float32, by today's names.

    Weights that do not fit `wanted` are refused before any of them is read.
    """
    try:
        with safe_open(path, "pt") as file:
            names = _names(file, path)
            for name in sorted(wanted.keys() - names.keys()):
                raise BadCheckpoint(
                    f"{path}: {name} is missing;"
                    " config.json describes another network than the weights"
                )
            for name in sorted(names.keys() - wanted.keys()):
                raise BadCheckpoint(
                    f"{path}: {name} belongs to no layer that config.json describes;"
                    " the two files do not fit"
                )
            for name, stored in names.items():
                _check_header(file.get_slice(stored), name, list(wanted[name].shape), path)
            # One tensor after another, so that no more than one is in memory twice.
            return {
                name: _finite(file.get_tensor(stored).float(), name, path)
                for name, stored in names.items()
            }
    except SafetensorError as error:
        raise BadCheckpoint(
            f"{path} is not a safetensors file ({error}); download or save it again"
        ) from None


def _names(file: Any, path: Path) -> dict[str, str]:
    """Map today's name of each tensor to the name that the file has for it."""
    names: dict[str, str] = {}
    # a safetensors file is no mapping
    for stored in file.keys():  # noqa: SIM118
        other = names.setdefault(_modern_name(stored), stored)
        if other != stored:
            raise BadCheckpoint(
                f"{path}: {other} and {stored} are names of one layer; remove one of them"
            )
    return names


def _check_header(header: Any, name: str, shape: list[int], path: Path) -> None:
    if header.get_shape() != shape:
        raise BadCheckpoint(
            f"{path}: {name} has shape {header.get_shape()}, config.json asks for {shape}"
        )
    if header.get_dtype() not in _DTYPES:
        raise BadCheckpoint(
            f"{path}: {name} is of type {header.get_dtype()};"
            f" convert it to one of {', '.join(_DTYPES)}"
        )


def _finite(tensor: Tensor, name: str, path: Path) -> Tensor:
    if not bool(torch.isfinite(tensor).all()):
        raise BadCheckpoint(
            f"{path}: {name} holds NaN or infinity in float32;"
            " the training diverged or the file is damaged"
        )
    return tensor


def _modern_name(name: str) -> str:
    """Translate the attention names of checkpoints that were saved before diffusers 0.12."""
    if ".attentions." not in name:
        return name
    return ".".join(_OLD_ATTENTION.get(part, part) for part in name.split("."))


def _scheduler_config(
    schedule: ScheduleCard, prediction: Prediction, variance: FixedVariance
) -> dict[str, Any]:
    betas: dict[str, Any] = {"beta_schedule": "squaredcos_cap_v2"}
    if schedule.kind == "linear":
        ends = {"beta_start": schedule.beta_start, "beta_end": schedule.beta_end}
        given = {key: value for key, value in ends.items() if value is not None}
        betas = {"beta_schedule": "linear", **given}
    return {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": "0.35.0",
        "num_train_timesteps": schedule.T,
        **betas,
        "variance_type": variance,
        "clip_sample": True,
        "prediction_type": prediction,
        "timestep_spacing": "linspace",
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    # RecursionError: it nests too deeply. ValueError: it is no JSON, or a number is too long.
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{path} is not JSON that can be read ({error})") from None
    if not isinstance(content, dict):
        raise BadCheckpoint(f"{path} holds a {type(content).__name__}, not an object")
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
