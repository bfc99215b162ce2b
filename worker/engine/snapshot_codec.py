"""Chains of shards as one blob, from which any worker continues them.

The blob is in the safetensors format: it holds no code, and keeps every bit. Every chain has a
checksum, so that a damaged one is not continued.
"""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from worker.engine.chain import ChainRequest, Snapshot
from worker.jobs.domain import Precision


class BadSnapshot(Exception):
    """The blob does not hold chains of this shard, which must start again."""


def pack(
    shards: Mapping[str, Sequence[Snapshot]], precision: Precision, fingerprint: str = ""
) -> bytes:
    """Pack chains: the rows done, x, and x_0_hat if their plans need it.

    A pixel takes about 4 bytes, or 8 with x_0_hat.

    Args:
        shards: The chains of each shard, by its id. The plans of all remember x_0_hat, or none.
        precision: What this worker computes in.
        fingerprint: This worker's for the model; empty if it has none.
    """
    snapshots = [s for of_one in shards.values() for s in of_one]
    numbers = [n for n, of_one in enumerate(shards.values()) for _ in of_one]
    tensors = {
        "precision": _text(precision),
        "fingerprint": _text(fingerprint),
        "shards": _text("\n".join(shards)),
        "shard": torch.tensor(numbers),
        "index": torch.tensor([s.request.index for s in snapshots]),
        "row": torch.tensor([s.row for s in snapshots]),
        "x": torch.stack([s.x for s in snapshots]),
    }
    if snapshots[0].request.plan.remembers:
        tensors["x_0_hat"] = torch.stack([s.x_0_hat for s in snapshots])
    of_chains = [shard for shard, of_one in shards.items() for _ in of_one]
    tensors["checksum"] = torch.tensor(_checksums(tensors, dict(enumerate(of_chains))))
    return save(tensors)


def packed_bytes(shape: tuple[int, int, int]) -> int:
    """Return the bytes of a packed chain with x_0_hat, of images of this shape (C, H, W)."""
    return 2 * 4 * math.prod(shape)


class SavedChains:
    """The chains that a blob holds, of any number of shards."""

    def __init__(self, blob: bytes) -> None:
        """Read a blob.

        Args:
            blob: What `pack` returned. A blob of before bundles holds one shard, and neither its id
                nor checksums.

        Raises:
            BadSnapshot: The blob is damaged.
        """
        try:
            tensors = load(blob)
            self._made_in = _read_text(tensors["precision"])
            made_by = tensors.get("fingerprint")
            self._made_by = "" if made_by is None else _read_text(made_by)
            self._index: list[int] = tensors["index"].tolist()
            self._row: list[int] = tensors["row"].tolist()
            self._x = tensors["x"]
            self._x_0_hat = tensors.get("x_0_hat", torch.zeros_like(self._x))
            self._remembered = "x_0_hat" in tensors
            self._checksums = tensors["checksum"].tolist() if "checksum" in tensors else None
            self._rows = self._rows_by_shard(tensors)
            count = len(self._index)
            if len(self._row) != count:
                raise ValueError(f"it holds {count} images and {len(self._row)} rows")
            self._tensors = tensors
        except (SafetensorError, KeyError, TypeError, ValueError, IndexError) as error:
            raise BadSnapshot(f"{type(error).__name__}: {error}") from None

    @property
    def holds_several(self) -> bool:
        """Tell whether chains of more than one shard are there."""
        return self._rows is not None and len(self._rows) > 1

    def of(
        self,
        shard: str,
        requests: Mapping[int, ChainRequest],
        shape: tuple[int, int, int],
        precision: Precision,
        fingerprint: str = "",
    ) -> list[Snapshot]:
        """Return those chains of a shard that are asked for.

        Args:
            shard: The shard's id.
            requests: The chains asked for, by image index.
            shape: An image's (C, H, W).
            precision: What this worker computes in.
            fingerprint: This worker's for the model. A blob of a version without fingerprints is
                compared by its precision only.

        Raises:
            BadSnapshot: The chains are damaged, or of another shape, or were made in another
                precision or by a worker of another fingerprint. An image's metadata names one of
                each, so one that used two could not be reproduced.
        """
        if self._made_in != precision:
            raise BadSnapshot(
                f"it was made in {self._made_in}, this worker computes in {precision}"
            )
        if self._made_by and fingerprint and self._made_by != fingerprint:
            raise BadSnapshot(
                f"its worker's fingerprint is {self._made_by}, this one's is {fingerprint}"
            )
        rows = self._rows.get(shard, []) if self._rows is not None else range(len(self._index))
        if not rows:
            raise BadSnapshot("it holds no chain of this shard")
        asked = [k for k in rows if self._index[k] in requests]
        self._check(shard, asked, shape)
        found = [
            Snapshot(requests[self._index[k]], self._row[k], self._x[k], self._x_0_hat[k])
            for k in asked
        ]
        _check_chains(found, self._remembered)
        return found

    def _rows_by_shard(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Sequence[int]] | None:
        if "shards" not in tensors:
            return None
        names = _read_text(tensors["shards"]).split("\n")
        rows: dict[str, list[int]] = defaultdict(list)
        for k, number in enumerate(tensors["shard"].tolist()):
            rows[names[number]].append(k)
        return rows

    def _check(self, shard: str, rows: Sequence[int], shape: tuple[int, int, int]) -> None:
        for images in (self._x, self._x_0_hat):
            _check_shape(images, len(self._index), shape)
            if not bool(images[rows].isfinite().all()):
                raise BadSnapshot("it holds NaN or infinity")
        if self._checksums is None:
            return
        found = _checksums(self._tensors, dict.fromkeys(rows, shard))
        if found != [self._checksums[k] for k in rows]:
            raise BadSnapshot("its bytes are not those that were saved")


def _checksums(tensors: Mapping[str, Tensor], shards: Mapping[int, str]) -> list[int]:
    """Return the CRC-32 of chains: of the shard's id, the index, the row, x and x_0_hat.

    Args:
        tensors: What is saved.
        shards: The shard's id, by the chain's place in the tensors.
    """
    arrays = [tensors[name].numpy() for name in ("index", "row", "x", "x_0_hat") if name in tensors]
    checksums = []
    for k, shard in shards.items():
        checksum = zlib.crc32(shard.encode())
        for array in arrays:
            checksum = zlib.crc32(array[k : k + 1].data, checksum)
        checksums.append(checksum)
    return checksums


def _text(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def _read_text(tensor: Tensor) -> str:
    return bytes(tensor.tolist()).decode("ascii", "replace")


def _check_shape(images: Tensor, count: int, shape: tuple[int, int, int]) -> None:
    if images.dtype != torch.float32 or images.shape != (count, *shape):
        raise BadSnapshot(
            f"it holds {images.dtype} {list(images.shape)}, not torch.float32 {[count, *shape]}"
        )


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
