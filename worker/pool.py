"""Chains on the device: their state lies in slots, and a step gathers some, runs the network and scatters them back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.noise import normal

Network = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Batch:
    """One step of B chains, as the host describes it: slot, timestep, seed, image index and draw int64 (B,); rows (B, 7)."""

    slots: Tensor
    t: Tensor
    seed: Tensor
    index: Tensor
    draw: Tensor
    rows: Tensor


class Pool:
    """`capacity` slots and one more for the dummy chain that pads a batch; float32 (capacity + 1, C, H, W) twice."""

    def __init__(self, network: Network, shape: tuple[int, int, int], capacity: int, device: torch.device) -> None:
        self.network, self.shape, self.device = network, shape, device
        self.dummy = capacity
        self.x = torch.zeros(capacity + 1, *shape, device=device)
        self.x_0_hat = torch.zeros_like(self.x)

    @torch.inference_mode()
    def start(self, slots: Sequence[int], seeds: Sequence[int], indices: Sequence[int]) -> None:
        """Put x_T into the slots of new chains: draw 0 of their noise."""
        where, seed, index = (torch.tensor(values, device=self.device) for values in (slots, seeds, indices))
        self.x[where] = normal(seed, index, torch.zeros_like(index), self.shape)
        self.x_0_hat[where] = 0

    @torch.inference_mode()
    def step(self, batch: Batch) -> None:
        """x' = a x_0_hat + b x + d x_0_hat_previous + s z, with x_0_hat = clip(p x + q out, -bound, bound)."""
        x, previous = self.x[batch.slots], self.x_0_hat[batch.slots]
        out = self.network(x, batch.t)
        p, q, bound, a, b, d, s = batch.rows[:, :, None, None, None].unbind(1)
        # clipped, an infinity would pass for black or white: as NaN it stays until the engine sees it
        x_0_hat = (p * x + q * out).clamp(-bound, bound).masked_fill(~out.isfinite(), torch.nan)
        z = normal(batch.seed, batch.index, batch.draw, self.shape)
        self.x[batch.slots] = a * x_0_hat + b * x + d * previous + s * z
        self.x_0_hat[batch.slots] = x_0_hat

    def read(self, slots: Sequence[int]) -> tuple[Tensor, Tensor]:
        """x and x_0_hat of the slots, on the host, float32 (B, C, H, W)."""
        where = torch.tensor(slots, device=self.device)
        return self.x[where].cpu(), self.x_0_hat[where].cpu()

    @torch.inference_mode()
    def write(self, slots: Sequence[int], x: Tensor, x_0_hat: Tensor) -> None:
        where = torch.tensor(slots, device=self.device)
        self.x[where], self.x_0_hat[where] = x.to(self.device), x_0_hat.to(self.device)
