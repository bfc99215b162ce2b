"""Tensors on their way into one safetensors file: shards are merged, prefixes taken off."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.checkpoints.bad_checkpoint import BadCheckpoint
from models.checkpoints.sources.files import check_safetensors

# What wrappers of a network put before its names: DistributedDataParallel, torch.compile, a class
# that holds it.
PREFIXES = ("module.", "_orig_mod.", "model.")
# An average that holds both: these are the averaged weights.
_AVERAGE = "ema_model."


def tensor_names(path: Path) -> list[str]:
    """List the names in a safetensors file.

    Raises:
        BadCheckpoint: It is none.
    """
    check_safetensors(path)
    try:
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise BadCheckpoint(
            f"{path} is not a safetensors file ({error}); download or save it again"
        ) from None


def without_prefixes(names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Take off what wrappers put before all names.

    Returns:
        The names that are left by the given ones, and the prefixes that went. If there are the
        averaged weights and others, only the averaged ones are left.
    """
    left = {name: name for name in names}
    gone: list[str] = []
    if any(name.startswith(_AVERAGE) for name in left):
        left = {k: v.removeprefix(_AVERAGE) for k, v in left.items() if v.startswith(_AVERAGE)}
        gone.append(_AVERAGE)
    while found := next((p for p in PREFIXES if left and _all_begin(left.values(), p)), None):
        left = {given: name.removeprefix(found) for given, name in left.items()}
        gone.append(found)
    return left, gone


def _all_begin(names: Iterable[str], prefix: str) -> bool:
    return all(name.startswith(prefix) for name in names)


def merge(files: Mapping[Path, Sequence[str] | None]) -> dict[str, Tensor]:
    """Read the tensors of several safetensors files, which stay mapped from the disk.

    Args:
        files: What each file must hold. None: anything.

    Raises:
        BadCheckpoint: A file is damaged or lacks a tensor, or two files hold the same one.
    """
    merged: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for path, wanted in files.items():
            names = tensor_names(path)
            for missing in sorted(set(wanted or ()) - set(names)):
                raise BadCheckpoint(f"{path}: {missing} is missing, which the index says it holds")
            for twice in sorted(merged.keys() & set(names)):
                raise BadCheckpoint(f"{path}: {twice} is in another shard too; remove one of them")
            file: Any = stack.enter_context(safe_open(path, "pt"))
            merged |= {name: file.get_tensor(name) for name in names}
    return merged


def write(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors to a safetensors file.

    Raises:
        BadCheckpoint: One is of a type that the format lacks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path)
    except (SafetensorError, ValueError, KeyError) as error:
        raise BadCheckpoint(f"the weights cannot be written as safetensors ({error})") from None
