"""What goes into the engine and what comes out: requests, snapshots, finished images, previews."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from torch import Tensor

from models.diffusion.plans import Plan
from worker.engine.transfers import HostCopy


@dataclass(frozen=True, slots=True)
class ChainRequest:
    """One image to make. `chain` names it, `job` groups chains for the scheduler, `interactive` is the upper class."""

    chain: Hashable
    job: Hashable
    plan: Plan
    seed: int
    index: int
    owner: str = ""
    interactive: bool = True


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A chain between two steps: `row` rows are done. x and x_0_hat: float32 (C, H, W) on the host.

    Where no plan of those copied together remembers its x_0_hat, it is zero.
    """

    request: ChainRequest
    row: int
    x: Tensor
    x_0_hat: Tensor


@dataclass(frozen=True, slots=True)
class Finished:
    """An image that left the engine: uint8 (C, H, W), or None where the network's numbers were not finite."""

    request: ChainRequest
    pixels: Tensor | None


@dataclass(frozen=True, slots=True)
class Preview:
    """How a chain looks with `row` rows done: x_0_hat, in a copy that is on its way to the host with others'."""

    request: ChainRequest
    row: int
    place: int
    copy: HostCopy

    def x_0_hat(self) -> Tensor:
        """float32 (C, H, W); waits until it is here."""
        return self.copy.result()[self.place]
