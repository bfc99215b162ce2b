"""Where the files of a model folder lie, in any of the layouts that diffusers writes.

A pipeline's folder has the network in unet/ and the process in scheduler/. A run of
train_unconditional.py has checkpoint-N/unet, with the averaged weights next to it in unet_ema/.
`UNet2DModel.save_pretrained` writes the flat form: config.json and the weights in one folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.checkpoints.bad_checkpoint import BadCheckpoint

WEIGHTS = "diffusion_pytorch_model.safetensors"
CONFIG = "config.json"
INDEX = "model_index.json"
SCHEDULER = "scheduler_config.json"
# the analytic variance is made of it
ESTIMATE = "residual_variance.json"
# a sheet of samples, which `ddpm models add` draws
SAMPLES = "samples.png"
# in the order in which they are taken: averaged weights make the better images
_NETWORKS = ("unet_ema", "unet", "")
# What a component of a pipeline says of it, and why it cannot be served.
_OTHERS = {
    "vqvae": "its network makes latents, which the vqvae decodes",
    "vae": "its network makes latents, which the vae decodes",
    "movq": "its network makes latents, which the movq decodes",
    "mel": "its pictures are spectrograms of sounds",
    "text_encoder": "its network follows a text",
    "bert": "its network follows a text",
    "transformer": "its network is a transformer",
    "prior": "its network follows an embedding",
    "image_encoder": "its network follows a picture",
    "decoder": "its network is one of several",
}
_PIPELINES = {
    "ConsistencyModelPipeline": "it was distilled to a consistency model, which is no DDPM",
    "LDMSuperResolutionPipeline": "its network enlarges a picture that it is given",
    "LDMPipeline": "its network makes latents",
    "ScoreSdeVePipeline": "its process lets the variance grow without bound",
    "KarrasVePipeline": "its process lets the variance grow without bound",
    "AudioDiffusionPipeline": "its pictures are spectrograms of sounds",
    "DanceDiffusionPipeline": "its network makes sounds",
}
# a network that diffusers does not have
OUR_UNET = ["ddpm-service", "LinearAttentionUNet"]
_PARTS = frozenset({"unet", "scheduler"})
# Keys under which files of a model name its classes: a list, or an object of names by number.
LABEL_KEYS = ("id2label", "class_names", "labels")
_OF_CLASSES = frozenset({*LABEL_KEYS, "label2id"})


def network_files(folder: Path) -> tuple[Path, Path]:
    """Find the network's configuration and its weights, averaged ones if there are any.

    Raises:
        BadCheckpoint: One of them is missing, or the folder is of another kind of model.
    """
    check_pipeline(folder)
    for base in (folder / name for name in _NETWORKS):
        if (base / CONFIG).is_file():
            if (base / WEIGHTS).is_file():
                return base / CONFIG, base / WEIGHTS
            raise BadCheckpoint(
                f"{base} holds no {WEIGHTS};"
                " `ddpm models add` reads other files of weights, and converts them"
            )
    raise BadCheckpoint(
        f"{folder} holds no unet/{CONFIG} and no {CONFIG};"
        " give a folder in diffusers' UNet2DModel format"
    )


def scheduler_file(folder: Path) -> Path | None:
    """Find the file of the process, in scheduler/ or beside the weights. None: there is none."""
    for path in (folder / "scheduler" / SCHEDULER, folder / SCHEDULER):
        if path.is_file():
            return path
    return None


def check_pipeline(folder: Path) -> None:
    """Read model_index.json, or without it the folder's names.

    Raises:
        BadCheckpoint: It is damaged, or lists parts other than a `UNet2DModel` and a scheduler.
    """
    path = folder / INDEX
    if not path.is_file():
        for part, reason in _OTHERS.items():
            if (folder / part).is_dir():
                raise BadCheckpoint(f"{folder / part} is not served: {reason}")
        return
    index = read_json(path)
    name = index.get("_class_name")
    if isinstance(name, str) and name in _PIPELINES:
        raise BadCheckpoint(f"{path}: _class_name={name!r}: {_PIPELINES[name]}; it is not served")
    for part, kind in index.items():
        # [null, null] is a part that the pipeline could have
        if part.startswith("_") or kind in (None, [None, None]) or part in _OF_CLASSES:
            continue
        if part not in _PARTS:
            reason = _OTHERS.get(part, "only a unet and a scheduler are")
            raise BadCheckpoint(f"{path}: {part}={kind!r} is not served: {reason}")
        if part == "unet" and kind not in (
            ["diffusers", "UNet2DModel"],
            ["diffusers", "UNetUnconditionalModel"],
            OUR_UNET,
        ):
            raise BadCheckpoint(f"{path}: unet={kind!r} is not served: only a UNet2DModel is")


def label_names(folder: Path, network: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Find the names of classes, in model_index.json or in the content of config.json.

    Returns:
        The names by number, or None if there are none, or not one for each number from 0 on.

    Raises:
        BadCheckpoint: model_index.json is damaged.
    """
    index = read_json(folder / INDEX) if (folder / INDEX).is_file() else {}
    for content in (index, network):
        for key in LABEL_KEYS:
            names = content.get(key)
            if isinstance(names, dict):
                numbers = [str(number) for number in range(len(names))]
                names = [names.get(number) for number in numbers]
            if isinstance(names, list) and names and all(isinstance(n, str) for n in names):
                return tuple(names)
    return None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        BadCheckpoint: It does not.
    """
    try:
        content = json.loads(path.read_text())
    # RecursionError: it nests too deeply. ValueError: it is no JSON, or a number is too long.
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{path} is not JSON that can be read ({error})") from None
    if not isinstance(content, dict):
        raise BadCheckpoint(f"{path} holds a {type(content).__name__}, not an object")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as JSON."""
    path.write_text(json.dumps(content, indent=2) + "\n")
