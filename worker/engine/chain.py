"""Requests that enter the engine; snapshots, finished images and previews that leave it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from torch import Tensor

from models.diffusion.plans import Plan
from worker.engine.transfers import HostCopy


@dataclass(frozen=True, slots=True)
class ChainRequest:
    """One image to make.

    Attributes:
        chain: The chain's name in the engine.
        job: Groups chains for the scheduler.
        plan: The rows that the chain takes.
        seed: The seed of its noise.
        index: The image's index in its job, which its noise depends on as well.
        owner: Whose job it is: owners get equal shares.
        interactive: Whether it goes before bulk work.
        class_row: Row of the network's embedding of classes. Networks without classes ignore it.
        null_row: The row that means no class, which guidance needs.
        guidance: Weight w of the guidance. 1 is none, and costs one pass a step instead of two.
    """

    chain: Hashable
    job: Hashable
    plan: Plan
    seed: int
    index: int
    owner: str = ""
    interactive: bool = True
    class_row: int = 0
    null_row: int = 0
    guidance: float = 1.0

    @property
    def is_guided(self) -> bool:
        """Tell whether a step takes a second pass, without a class."""
        return self.guidance != 1


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A chain between two steps, `row` rows of its plan done.

    x and x_0_hat are float32 (C, H, W) on the host. x_0_hat is zero if no plan of the chains
    copied with it remembers its x_0_hat.
    """

    request: ChainRequest
    row: int
    x: Tensor
    x_0_hat: Tensor


@dataclass(frozen=True, slots=True)
class Finished:
    """An image that left the engine.

    `pixels` is uint8 (C, H, W), or None if the network's output was not finite.
    """

    request: ChainRequest
    pixels: Tensor | None


@dataclass(frozen=True, slots=True)
class Preview:
    """A chain's x_0_hat when `row` rows were done.

    It is number `place` of a copy of several chains, which may still be on its way to the host.
    """

    request: ChainRequest
    row: int
    place: int
    copy: HostCopy

    def x_0_hat(self) -> Tensor:
        """Wait until the copy is on the host, and return float32 (C, H, W)."""
        return self.copy.result()[self.place]
