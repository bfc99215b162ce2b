"""Chains of a shard as one blob, from which any worker goes on where they stood. Safetensors: no code, exact bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from worker.engine.chain import ChainRequest, Snapshot
from worker.jobs.domain import Precision


class BadSnapshot(Exception):
    """The blob does not hold chains of this shard; the shard is to begin anew."""


def pack(snapshots: Sequence[Snapshot], precision: Precision) -> bytes:
    """Rows done, x, and x_0_hat where the plan needs it, for chains of one recipe. About 4 bytes a pixel, or 8."""
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
    """Those of `requests`, by image index, that the blob holds. `shape` is a picture's, (C, H, W). Raises BadSnapshot.

    Also where it was made in another precision: nobody could make the picture again from the one that its metadata names.
    """
    try:
        tensors = load(blob)
        made_in = bytes(tensors["precision"].tolist()).decode("ascii", "replace")
        index, row, x = tensors["index"].tolist(), tensors["row"].tolist(), tensors["x"]
        x_0_hat = tensors.get("x_0_hat", torch.zeros_like(x))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BadSnapshot(f"{type(error).__name__}: {error}") from None
    if made_in != precision:
        raise BadSnapshot(f"it was made in {made_in}, this worker computes in {precision}")
    if len(index) != len(row):
        raise BadSnapshot(f"it holds {len(index)} images and {len(row)} rows")
    _check_pictures(x, len(index), shape)
    _check_pictures(x_0_hat, len(index), shape)
    found = [
        Snapshot(requests[i], row[k], x[k], x_0_hat[k])
        for k, i in enumerate(index)
        if i in requests
    ]
    _check_chains(found, "x_0_hat" in tensors)
    return found


def _check_pictures(pictures: Tensor, count: int, shape: tuple[int, int, int]) -> None:
    if pictures.dtype != torch.float32 or pictures.shape != (count, *shape):
        raise BadSnapshot(
            f"it holds {pictures.dtype} {list(pictures.shape)}, not torch.float32 {[count, *shape]}"
        )
    if not bool(pictures.isfinite().all()):
        raise BadSnapshot("it holds NaN or infinity")


def _check_chains(found: Sequence[Snapshot], remembered: bool) -> None:
    if len({s.request.index for s in found}) < len(found):
        raise BadSnapshot("it holds an image twice")
    for s in found:
        if type(s.row) is not int or not 0 <= s.row < len(s.request.plan):
            raise BadSnapshot(
                f"row {s.row} of image {s.request.index} is none of the {len(s.request.plan)} of its plan"
            )
        if s.request.plan.remembers and not remembered:
            raise BadSnapshot("it holds no x_0_hat, which the plan needs")
