"""Chains of a shard as one blob, from which any worker goes on where they stood. Safetensors: no code, exact bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from worker.engine import ChainRequest, Snapshot


class BadSnapshot(Exception):
    """The blob does not hold chains of this shard; the shard is to begin anew."""


def pack(snapshots: Sequence[Snapshot]) -> bytes:
    """Rows done, x, and x_0_hat where the plan needs it, for chains of one recipe. About 4 bytes a pixel, or 8."""
    tensors = {
        "index": torch.tensor([s.request.index for s in snapshots]),
        "row": torch.tensor([s.row for s in snapshots]),
        "x": torch.stack([s.x for s in snapshots]),
    }
    if snapshots[0].request.plan.remembers:
        tensors["x_0_hat"] = torch.stack([s.x_0_hat for s in snapshots])
    return save(tensors)


def unpack(blob: bytes, requests: Mapping[int, ChainRequest]) -> list[Snapshot]:
    """Those of `requests`, by image index, that the blob holds. Raises BadSnapshot."""
    try:
        tensors = load(blob)
        index, row, x = tensors["index"].tolist(), tensors["row"].tolist(), tensors["x"]
        x_0_hat = tensors.get("x_0_hat", torch.zeros_like(x))
    except (SafetensorError, KeyError) as error:
        raise BadSnapshot(str(error)) from None
    return [Snapshot(requests[i], row[k], x[k], x_0_hat[k]) for k, i in enumerate(index) if i in requests]
