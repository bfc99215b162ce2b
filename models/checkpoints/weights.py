"""The weights of a network in a safetensors file, which holds no code as a pickle does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from models.checkpoints.bad_checkpoint import BadCheckpoint

_DTYPES = ("F64", "F32", "F16", "BF16")
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def read_weights(wanted: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Read weights in float32, by today's names.

    Args:
        wanted: The network's tensors by name, of which the shapes are looked at.
        path: The file.

    Raises:
        BadCheckpoint: The weights do not fit, which is found before any of them is read, or are
            not finite.
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
            # One tensor after another, so that no more than one is in memory twice. A copy always,
            # because the file is mapped, and may change.
            return {
                name: _finite(file.get_tensor(stored).to(torch.float32, copy=True), name, path)
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
