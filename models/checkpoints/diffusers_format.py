"""Reading and writing a model folder in diffusers' format.

`DDPMPipeline.from_pretrained` reads the same folder:

    <name>/card.json
    <name>/model_index.json
    <name>/unet/config.json
    <name>/unet/diffusion_pytorch_model.safetensors
    <name>/scheduler/scheduler_config.json

models/checkpoints/layout.py finds the files in the other layouts, weights.py and
scheduler_config.py read them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from models.checkpoints.bad_checkpoint import BadCheckpoint
from models.checkpoints.catalog import ScheduleCard, sha256_of
from models.checkpoints.layout import (
    CONFIG,
    ESTIMATE,
    INDEX,
    OUR_UNET,
    SCHEDULER,
    WEIGHTS,
    label_names,
    network_files,
    read_json,
    write_json,
)
from models.checkpoints.scheduler_config import (
    Published,
    Stated,
    read_scheduler,
    scheduler_config,
)
from models.checkpoints.weights import read_weights
from models.diffusion.options import Prediction, PublishedVariance
from models.diffusion.process import Process
from models.diffusion.schedule import Schedule
from models.networks.families import build, read_config
from models.networks.linear_attention_config import LINEAR_ATTENTION
from models.networks.network import DenoisingNetwork
from models.networks.network_config import NetworkConfig, UnsupportedConfig
from models.networks.unet_config import EMA_KEYS, UNetConfig

_NOTHING = Stated()
# what cannot be told from latents
_WITH_ALPHA = {2: "taken for grey with alpha", 4: "taken for RGB with alpha"}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A network ready to run, and the process that it was trained on.

    Attributes:
        net: The network in eval mode, float32, on the CPU.
        process: Its process.
        sha256: The hash of its weights.
    """

    net: DenoisingNetwork
    process: Process
    sha256: str

    @property
    def schedule(self) -> Schedule:
        """The forward process."""
        return self.process.schedule

    @property
    def prediction(self) -> Prediction:
        """What the network's output estimates."""
        return self.process.prediction


@dataclass(frozen=True, slots=True)
class Description:
    """What the files of a folder say, without the weights.

    Attributes:
        folder: The folder.
        config: The network's options.
        published: The process.
        weights: The file of the weights.
        notes: What was chosen or passed over, a sentence each.
        network: The content of config.json, with the size that was stated.
        label_names: The names of the network's classes, if the files have them.
    """

    folder: Path
    config: NetworkConfig
    published: Published
    weights: Path
    notes: tuple[str, ...]
    network: Mapping[str, Any]
    label_names: tuple[str, ...] | None = None


def describe(
    folder: Path, stated: Stated = _NOTHING, size: tuple[int, int] | None = None
) -> Description:
    """Read a folder's configurations.

    Args:
        folder: The model folder.
        stated: What is stated of the process instead of the scheduler's file.
        size: Height and width of a network whose configuration states none.

    Raises:
        BadCheckpoint: A file is missing or damaged, or of a network or process that is not
            supported.
    """
    try:
        return _describe(folder, stated, size)
    except OSError as error:
        raise _unreadable(folder, error) from None


def _describe(folder: Path, stated: Stated, size: tuple[int, int] | None) -> Description:
    path, weights = network_files(folder)
    content = read_json(path)
    try:
        config = read_config(content, size)
    except UnsupportedConfig as error:
        raise BadCheckpoint(f"{path}: {error}") from None
    published = read_scheduler(folder, stated)
    _check_together(path, config, published)
    return Description(
        folder,
        config,
        published,
        weights,
        _notes(folder, path, content, published),
        {**content, "sample_size": config.sample_size},
        label_names(folder, content),
    )


def _check_together(path: Path, config: NetworkConfig, published: Published) -> None:
    """Refuse a network and a process of which one learned a variance, or fewer timesteps."""
    learned = published.process.learned_variance
    if config.learns_variance and learned is None:
        raise BadCheckpoint(
            f"{path}: out_channels={config.out_channels} are twice in_channels, and the scheduler's"
            " variance_type does not say what the second half is; set it to learned_range or"
            " learned"
        )
    if learned is not None and not config.learns_variance:
        raise BadCheckpoint(
            f"{path}: out_channels={config.out_channels} leave no room for the scheduler's"
            f" variance_type={learned!r}; correct one of them"
        )
    if not isinstance(config, UNetConfig):
        return
    T, known = published.card.T, config.num_train_timesteps
    if config.time_embedding_type == "learned" and known is not None and known < T:
        raise BadCheckpoint(
            f"{path}: num_train_timesteps={known} are fewer than the scheduler's {T};"
            " correct one of them"
        )


def _notes(
    folder: Path, path: Path, content: Mapping[str, Any], published: Published
) -> tuple[str, ...]:
    notes = []
    if path.parent.name == "unet_ema" and (folder / "unet").is_dir():
        notes.append("unet_ema is used, and unet is not: averaged weights make better images")
    if ignored := sorted(content.keys() & set(EMA_KEYS)):
        notes.append(f"of no effect in config.json: {', '.join(ignored)}")
    if content.get("in_channels") in _WITH_ALPHA:
        notes.append(f"in_channels={content['in_channels']}: {_WITH_ALPHA[content['in_channels']]}")
    if content.get("time_embedding_type") == "fourier":
        notes.append("timestep 0 has no logarithm, and the network sees 1 instead")
    if published.ignored:
        notes.append(f"of the solver alone in {SCHEDULER}: {', '.join(published.ignored)}")
    return tuple(notes)


def load(folder: Path, sha256: str | None = None, stated: Stated = _NOTHING) -> Checkpoint:
    """Load a model folder.

    Args:
        folder: The model folder.
        sha256: What the hash of the weights must be. None: any.
        stated: What is stated of the process instead of the scheduler's file.

    Raises:
        BadCheckpoint: A file is missing, damaged, of another hash, or of a network or process that
            is not supported.
    """
    return load_described(describe(folder, stated), sha256)


def _unreadable(folder: Path, error: OSError) -> BadCheckpoint:
    """Make the error of a file that cannot be read."""
    return BadCheckpoint(
        f"{error.filename or folder} cannot be read ({error.strerror or error});"
        " give the user of this process the right to"
    )


def load_described(described: Description, sha256: str | None = None) -> Checkpoint:
    """Load the weights of a folder that was described.

    Args:
        described: What `describe` returned.
        sha256: What the hash of the weights must be. None: any.

    Raises:
        BadCheckpoint: The weights are damaged, of another hash, or of another network.
    """
    try:
        hashed = sha256_of(described.weights)
    except OSError as error:
        raise _unreadable(described.folder, error) from None
    if sha256 is not None and hashed != sha256:
        raise BadCheckpoint(
            f"{described.weights} has sha256 {hashed}, its card says {sha256};"
            " restore the file or write the card anew"
        )
    try:
        # The meta device takes no memory before the weights are known to fit.
        with torch.device("meta"):
            net = build(described.config)
    except UnsupportedConfig as error:
        raise BadCheckpoint(f"{described.weights.with_name(CONFIG)}: {error}") from None
    found = read_weights(net.state_dict(), described.weights)
    # Not `to_empty` before it, which imports sympy: two seconds of a worker's start.
    net.load_state_dict(found, assign=True)
    return Checkpoint(net.eval().requires_grad_(False), described.published.process, hashed)


def copy(described: Description, target: Path) -> None:
    """Copy a model to a pipeline's folder, which says all that was found or stated, but its card.

    The weights stay as they are. Nothing else that lies in the folder is copied, but for the
    estimate of the analytic variance.

    Raises:
        OSError: A file cannot be read or written.
    """
    (target / "unet").mkdir(parents=True)
    (target / "scheduler").mkdir()
    shutil.copyfile(described.weights, target / "unet" / WEIGHTS)
    write_json(target / "unet" / CONFIG, described.network)
    write_json(target / "scheduler" / SCHEDULER, described.published.config)
    write_json(target / INDEX, pipeline_index(described.published.config, described.network))
    estimate = described.folder / ESTIMATE
    if estimate.is_file():
        shutil.copyfile(estimate, target / ESTIMATE)


def save(
    folder: Path,
    config: UNetConfig,
    state: Mapping[str, Tensor],
    schedule: ScheduleCard,
    prediction: Prediction,
    variance: PublishedVariance = "fixed_small",
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
    write_json(folder / "unet" / CONFIG, config.to_diffusers())
    tensors = {k: v.detach().float().cpu().contiguous() for k, v in state.items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    # safetensors lets no other user read what it writes
    shutil.copymode(folder / "unet" / CONFIG, weights)
    process = scheduler_config(schedule, prediction, variance)
    write_json(folder / "scheduler" / SCHEDULER, process)
    write_json(folder / INDEX, pipeline_index(process))
    return sha256_of(weights)


def pipeline_index(
    process: Mapping[str, Any], network: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """Make the content of model_index.json, from which diffusers reads a DDPMPipeline.

    It reads none whose network it lacks, which is named as ours.

    Args:
        process: The content of the scheduler's file.
        network: The content of config.json.
    """
    is_ours = network.get("_class_name") == LINEAR_ATTENTION
    return {
        "_class_name": "DDPMPipeline",
        "_diffusers_version": "0.35.0",
        "scheduler": ["diffusers", process.get("_class_name", "DDPMScheduler")],
        "unet": OUR_UNET if is_ours else ["diffusers", "UNet2DModel"],
    }
