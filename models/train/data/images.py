"""A set of images in an order, and the one that lies in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

# images that are hashed at once
_CHUNK = 4096
_MOST_CLASSES = 12
# pixels a side, or height and width
Size = int | tuple[int, int]


class BadData(ValueError):
    """The data cannot be used; the text names the file and the remedy."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found where the images are.

    Attributes:
        images: Images that are used.
        classes: Images in each folder below the data's; empty where there are none.
        left_out: Files and folders that are no images of the set, by the reason.
        decoded: Whether every image was decoded, and not only its header read.
    """

    images: int
    classes: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    decoded: bool = True

    def lines(self) -> list[str]:
        """Describe it: a line of counts, and a line for each reason to leave something out."""
        most = sorted(self.classes.items(), key=lambda item: -item[1])[:_MOST_CLASSES]
        counts = ", ".join(f"{name} {count}" for name, count in most)
        if others := len(self.classes) - len(most):
            counts += f", and {others} other folders"
        how = "" if self.decoded else "; their headers were read (--decode-all reads all of each)"
        lines = [f"{self.images} pictures" + (f" ({counts})" if counts else "") + how]
        for reason, names in self.left_out.items():
            lines.append(f"left out, {reason}: {listed(names)}")
        return lines


@dataclass(frozen=True, slots=True)
class Labels:
    """The class of each image.

    Attributes:
        of_images: int64 (N,), from 0 to count - 1.
        count: Classes.
        names: The name of each class; None where classes are numbers only.
    """

    of_images: Tensor
    count: int
    names: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class KnownClasses:
    """The classes that images must be of, because a network has learned them already."""

    count: int
    names: tuple[str, ...] | None = None


class Images(Protocol):
    """A set of images in an order."""

    @property
    def survey(self) -> Survey:
        """What was found where they are."""

    @property
    def identity(self) -> str:
        """Name of these images in this order.

        A run that resumes continues through the same permutation, so it must have the same images.
        """

    @property
    def names(self) -> Sequence[str]:
        """Names of the images' files, in order. It is empty where all lie in one file."""

    @property
    def labels(self) -> Labels | None:
        """The class of each image. None where none was asked for."""

    def goes_on_from(self, identity: str) -> bool:
        """Tell whether a run on the images of that identity may go on with these."""

    def __len__(self) -> int:
        """Count the images."""

    def batch(self, indices: Tensor) -> Tensor:
        """Read the images of the indices, (B,): uint8 (B, C, H, W)."""


class ArrayImages:
    """Images in memory."""

    names: Sequence[str] = ()

    def __init__(self, pixels: Tensor, labels: Labels | None = None) -> None:
        """Take the pixels, uint8 (N, C, H, W), in any layout, and the class of each image."""
        self.pixels = pixels
        self.labels = labels

    @property
    def survey(self) -> Survey:
        """Count them."""
        return Survey(len(self))

    @property
    def identity(self) -> str:
        """A hash of the pixels and the labels."""
        found = hashlib.sha256()
        for chunk in self.pixels.split(_CHUNK):
            found.update(chunk.contiguous().numpy().data)
        if self.labels:
            found.update(self.labels.of_images.numpy().data)
        return found.hexdigest()

    def goes_on_from(self, identity: str) -> bool:
        """Tell whether they are the same pixels."""
        return identity == self.identity

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, indices: Tensor) -> Tensor:
        """Read the images of the indices, (B,): uint8 (B, C, H, W)."""
        return self.pixels[indices].contiguous()


def sides_of(size: Size) -> tuple[int, int]:
    """Return height and width."""
    return (size, size) if isinstance(size, int) else size


def listed(names: Sequence[str], most: int = 5) -> str:
    """Join the first names, and count the others."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
