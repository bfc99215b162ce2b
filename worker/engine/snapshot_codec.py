"""Chains of a shard as one blob, from which any worker continues them.

The blob is in the safetensors format: it holds no code, and keeps every bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from worker.engine.chain import ChainRequest, Snapshot
from worker.jobs.domain import Precision


class BadSnapshot(Exception):
    """The blob does not hold chains of this shard, which must start again."""


def pack(snapshots: Sequence[Snapshot], precision: Precision) -> bytes:
    """Pack chains of one recipe: the rows done, x, and x_0_hat if the plan needs it.

    A pixel takes about 4 bytes, or 8 with x_0_hat.
    """
    tensors = {
        "precision": torch.tensor(list(precision.encode()), dtype=torch.uint8),
        "index": torch.tensor([s.request.index for s in snapshots]),
        "row": torch.tensor([s.row for s in snapshots]),
        "x": torch.stack([s.x for s in snapshots]),
    }
    if snapshots[0].request.plan.remembers:
        tensors["x_0_hat"] = torch.stack([s.x_0_hat for s in snapshots])
    return save(tensors)


def unpack(
    blob: bytes,
    requests: Mapping[int, ChainRequest],
    shape: tuple[int, int, int],
    precision: Precision,
) -> list[Snapshot]:
    """Unpack those chains of a blob that are asked for.

    Args:
        blob: What `pack` returned.
        requests: The chains asked for, by image index.
        shape: An image's (C, H, W).
        precision: What this worker computes in.

    Raises:
        BadSnapshot: The blob is damaged, or is of other chains, or was made in another precision.
            An image's metadata names one precision, so one that used two could not be reproduced.
    """
    try:
        tensors = load(blob)
        made_in = bytes(tensors["precision"].tolist()).decode("ascii", "replace")
        index = tensors["index"].tolist()
        row = tensors["row"].tolist()
        x = tensors["x"]
        x_0_hat = tensors.get("x_0_hat", torch.zeros_like(x))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BadSnapshot(f"{type(error).__name__}: {error}") from None
    if made_in != precision:
        raise BadSnapshot(f"it was made in {made_in}, this worker computes in {precision}")
    if len(index) != len(row):
        raise BadSnapshot(f"it holds {len(index)} images and {len(row)} rows")
    _check_images(x, len(index), shape)
    _check_images(x_0_hat, len(index), shape)
    asked = [(k, requests[i]) for k, i in enumerate(index) if i in requests]
    found = [Snapshot(request, row[k], x[k], x_0_hat[k]) for k, request in asked]
    _check_chains(found, "x_0_hat" in tensors)
    return found


def _check_images(images: Tensor, count: int, shape: tuple[int, int, int]) -> None:
    if images.dtype != torch.float32 or images.shape != (count, *shape):
        raise BadSnapshot(
            f"it holds {images.dtype} {list(images.shape)}, not torch.float32 {[count, *shape]}"
        )
    if not bool(images.isfinite().all()):
        raise BadSnapshot("it holds NaN or infinity")


def _check_chains(found: Sequence[Snapshot], remembered: bool) -> None:
    if len({s.request.index for s in found}) < len(found):
        raise BadSnapshot("it holds an image twice")
    for s in found:
        if type(s.row) is not int or not 0 <= s.row < len(s.request.plan):
            raise BadSnapshot(
                f"row {s.row} of image {s.request.index}"
                f" is none of the {len(s.request.plan)} of its plan"
            )
        if s.request.plan.remembers and not remembered:
            raise BadSnapshot("it holds no x_0_hat, which the plan needs")
