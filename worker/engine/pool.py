"""Chains on the device: they lie in slots, and a step gathers some, runs the network, and scatters.

On CUDA a whole step is one graph. On a CPU, compiled functions of this project do what is around
the network: PyTorch's operations on a few images take longer to call than to run.
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

# values of new chains' noise: drawing one takes some 40 bytes
DRAWN_AT_ONCE = 1 << 20


def columns_of(chains: Sequence[tuple[float, ...]], size: int, dummy: int) -> Tensor:
    """Describe a step on the host: one column a chain, so that one copy takes it to the device.

    A column is the five numbers of ADDRESS and the seven of the plan's row. float64 holds every
    seed (below 2^53) and every float32 exactly.

    Args:
        chains: The columns, in any order.
        size: The batch size. Missing columns are the dummy chain's, whose row is zeros.
        dummy: The dummy chain's slot.

    Returns:
        float64 (12, size).
    """
    padding = (dummy, *[0] * (WIDTH - 1))
    rows = zip(*chains, *[padding] * (size - len(chains)), strict=True)
    numbers = array("d", chain.from_iterable(rows))
    return torch.frombuffer(numbers, dtype=torch.float64).view(WIDTH, size)


class Pool:
    """`capacity` slots for chains, and one more for the dummy chain that pads a batch.

    Attributes:
        x: x_t of every slot, float32 (capacity + 1, C, H, W).
        x_0_hat: The last x_0_hat of every slot, float32 (capacity + 1, C, H, W).
        dummy: The dummy chain's slot, the last one.
    """

    def __init__(
        self,
        network: Network,
        shape: tuple[int, int, int],
        capacity: int,
        device: torch.device,
        record: Recorder | None = None,
        drawn_at_once: int = DRAWN_AT_ONCE,
    ) -> None:
        """Allocate the slots.

        Args:
            network: eps_theta, or whatever the plans' rows are made for.
            shape: An image's (C, H, W).
            capacity: How many chains fit.
            device: Where they lie. It becomes the calling thread's current GPU.
            record: How steps are recorded. None: as graphs on CUDA; elsewhere they just run.
            drawn_at_once: How many values of new chains' noise are drawn at once, about.
        """
        self.network = network
        self.shape = shape
        self.device = device
        self.capacity = capacity
        self.dummy = capacity
        self._drawn_at_once = drawn_at_once
        self.x = torch.zeros(capacity + 1, *shape, device=device)
        self.x_0_hat = torch.zeros_like(self.x)
        make_current(device)
        if record is None and device.type == "cuda":
            record = CudaRecorder(device)
        self.gather, self.advance = fastest_on(device)
        self._step = self._whole_step
        if record:
            self._step = StepGraphs(self._whole_step, self.dummy, device, record).replay

    @torch.inference_mode()
    def start(self, slots: Sequence[int], seeds: Sequence[int], indices: Sequence[int]) -> None:
        """Put x_T of new chains into their slots. It is draw 0 of their noise."""
        addresses = to_device(self.device, torch.tensor([slots, seeds, indices]))
        at_once = max(1, self._drawn_at_once // math.prod(self.shape))
        for where, seed, index in addresses.split(at_once, dim=1):
            self.x[where] = normal(seed, index, torch.zeros_like(index), self.shape)
            self.x_0_hat[where] = 0

    def step(self, columns: Tensor) -> None:
        """Take the next row of the chains that `columns_of` describes, float64 (12, B).

        On CUDA a batch size's graph is recorded when the size is first met. If you step often,
        enter inference mode once: doing it here costs a step of one image half a per cent.

        Raises:
            torch.OutOfMemoryError: A batch size that was not met before does not fit.
        """
        with nullcontext() if torch.is_inference_mode_enabled() else torch.inference_mode():
            self._step(columns)

    def _whole_step(self, columns: Tensor) -> None:
        x, t = self.gather(columns, self.x)
        self.advance(columns, self.x, self.x_0_hat, self.network(x, t))

    @torch.inference_mode()
    def prepare(self, size: int) -> None:
        """Do now what only the first step of this size does, such as recording its graph.

        Raises:
            torch.OutOfMemoryError: The size does not fit.
        """
        self.step(columns_of([], size, self.dummy))

    def wait(self) -> None:
        """Wait until the device has done everything queued."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @torch.inference_mode()
    def copy_out(self, slots: Sequence[int]) -> HostCopy:
        """Start copying x of these slots to the host, float32 (B, C, H, W).

        The copy is of x as it is now. The slots may be used again at once.
        """
        return HostCopy(self.x[to_device(self.device, torch.tensor(slots))])

    def read(self, slots: Sequence[int]) -> Tensor:
        """Copy x of these slots to the host, and wait for it: float32 (B, C, H, W)."""
        return self.copy_out(slots).result()

    @torch.inference_mode()
    def copy_out_x_0_hat(self, slots: Sequence[int]) -> HostCopy:
        """Start copying x_0_hat of these slots to the host, float32 (B, C, H, W)."""
        return HostCopy(self.x_0_hat[to_device(self.device, torch.tensor(slots))])

    def read_x_0_hat(self, slots: Sequence[int]) -> Tensor:
        """Copy x_0_hat of these slots to the host, and wait for it: float32 (B, C, H, W)."""
        return self.copy_out_x_0_hat(slots).result()

    @torch.inference_mode()
    def write(self, slots: Sequence[int], x: Tensor, x_0_hat: Tensor) -> None:
        """Put chains into slots: x and x_0_hat, float32 (B, C, H, W) on the host."""
        where = to_device(self.device, torch.tensor(slots))
        self.x[where] = to_device(self.device, x)
        self.x_0_hat[where] = to_device(self.device, x_0_hat)
