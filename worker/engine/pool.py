"""Chains on the device: their state lies in slots, and a step gathers some, runs the network and scatters them back.

On CUDA a whole step is one graph. On a CPU what is around the network is functions of ours, where they were compiled: an
operation on a few images is mostly its call.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import chain

import torch
from torch import Tensor

from models.diffusion.noise import normal
from models.diffusion.sampling import Network
from worker.backends.host import make_current
from worker.engine.cuda_graphs import CudaRecorder, Recorder, StepGraphs
from worker.engine.step import WIDTH, fastest_on
from worker.engine.transfers import HostCopy, to_device

_DRAWN_AT_ONCE = 1 << 20  # values of new chains' noise: drawing one takes some 40 bytes


def columns_of(chains: Sequence[tuple[float, ...]], size: int, dummy: int) -> Tensor:
    """A step of chains, as the host describes it: float64 (12, size), the five numbers of ADDRESS and the seven of a plan's row.

    Padded to `size` with the dummy chain, whose row is zeros. One tensor, so that it is one copy to the device.
    float64 holds every seed (below 2^53) and every float32 exactly.
    """
    padding = (dummy, *[0] * (WIDTH - 1))
    numbers = array(
        "d", chain.from_iterable(zip(*chains, *[padding] * (size - len(chains)), strict=True))
    )
    return torch.frombuffer(numbers, dtype=torch.float64).view(WIDTH, size)


class Pool:
    """`capacity` slots and one more for the dummy chain that pads a batch; float32 (capacity + 1, C, H, W) twice."""

    def __init__(
        self,
        network: Network,
        shape: tuple[int, int, int],
        capacity: int,
        device: torch.device,
        record: Recorder | None = None,
    ) -> None:
        """`record`: how steps are recorded; None records them on CUDA and runs them one by one elsewhere."""
        self.network, self.shape, self.device = network, shape, device
        self.capacity = self.dummy = capacity  # the slot behind the last
        self.x = torch.zeros(capacity + 1, *shape, device=device)
        self.x_0_hat = torch.zeros_like(self.x)
        make_current(device)
        if record is None and device.type == "cuda":
            record = CudaRecorder(device)
        self.gather, self.advance = fastest_on(device)
        self._step = (
            StepGraphs(self._whole_step, self.dummy, device, record).replay
            if record
            else self._whole_step
        )

    @torch.inference_mode()
    def start(self, slots: Sequence[int], seeds: Sequence[int], indices: Sequence[int]) -> None:
        """Put x_T into the slots of new chains: draw 0 of their noise."""
        addresses = to_device(self.device, torch.tensor([slots, seeds, indices]))
        for where, seed, index in addresses.split(
            max(1, _DRAWN_AT_ONCE // math.prod(self.shape)), dim=1
        ):
            self.x[where] = normal(seed, index, torch.zeros_like(index), self.shape)
            self.x_0_hat[where] = 0

    def step(self, columns: Tensor) -> None:
        """The chains of `columns_of` take their next row. On CUDA one graph a batch size, captured when it is first met.

        Who steps often is in inference mode already: entering it costs a lone image's step half a per cent.
        """
        with nullcontext() if torch.is_inference_mode_enabled() else torch.inference_mode():
            self._step(columns)

    def _whole_step(self, columns: Tensor) -> None:
        x, t = self.gather(columns, self.x)
        self.advance(columns, self.x, self.x_0_hat, self.network(x, t))

    @torch.inference_mode()
    def prepare(self, size: int) -> None:
        """Do what the first step of this size would do once. Raises torch.OutOfMemoryError."""
        self.step(columns_of([], size, self.dummy))

    def wait(self) -> None:
        """Until the device has done what it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @torch.inference_mode()
    def copy_out(self, slots: Sequence[int]) -> HostCopy:
        """x of the slots as it is now, on its way to the host, float32 (B, C, H, W); the slots may be used again at once."""
        return HostCopy(self.x[to_device(self.device, torch.tensor(slots))])

    def read(self, slots: Sequence[int]) -> Tensor:
        """Likewise, and here."""
        return self.copy_out(slots).result()

    @torch.inference_mode()
    def copy_out_x_0_hat(self, slots: Sequence[int]) -> HostCopy:
        """As `copy_out`, of x_0_hat."""
        return HostCopy(self.x_0_hat[to_device(self.device, torch.tensor(slots))])

    def read_x_0_hat(self, slots: Sequence[int]) -> Tensor:
        """As `read`, of x_0_hat."""
        return self.copy_out_x_0_hat(slots).result()

    @torch.inference_mode()
    def write(self, slots: Sequence[int], x: Tensor, x_0_hat: Tensor) -> None:
        where = to_device(self.device, torch.tensor(slots))
        self.x[where], self.x_0_hat[where] = (
            to_device(self.device, x),
            to_device(self.device, x_0_hat),
        )
