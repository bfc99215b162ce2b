"""Chains on the device: their state lies in slots, and a step gathers some, runs the network and scatters them back.

On CUDA a whole step is one graph. On a CPU all of it but the network is one function of ours, or NumPy's: an operation on a few
images is mostly its call, and NumPy's takes a third of torch's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.noise import normal
from models.plans import COLUMNS
from models.sampling import Network
from worker.copies import Copying, onto
from worker.cpu_kernels import CompiledAdvance, library
from worker.graphs import CudaRecorder, Graphs, Recorder
from worker.machine import make_current
from worker.noise_ahead import NoiseAhead
from worker.rows import ADDRESS, WIDTH, advance_on, next_state

_D, _S = len(ADDRESS) + COLUMNS.index("d"), len(ADDRESS) + COLUMNS.index("s")


@dataclass(frozen=True, slots=True)
class Batch:
    """One step of B chains, as the host describes it: float64 (12, B), the five numbers of ADDRESS and the seven of a plan's row.

    One array, so that it is one copy to the device. float64 holds every seed (below 2^53) and every float32 exactly.
    """

    columns: NDArray[np.float64]
    remembers: bool  # whether any chain wants its x_0_hat of the step before
    noisy: bool

    @classmethod
    def of(cls, chains: Sequence[tuple[float, ...]], size: int, dummy: int) -> Batch:
        """Padded to `size` with the dummy chain; a row of zeros keeps it at zero."""
        padding = (dummy, *[0] * (WIDTH - 1))
        columns = np.array([*chains, *[padding] * (size - len(chains))], np.float64).T.copy()
        return cls(columns, any(chain[_D] for chain in chains), any(chain[_S] for chain in chains))


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
        self.advance = advance_on(device)
        self._graphs = Graphs(self._whole_step, self.dummy, device, record) if record else None
        self._noise = NoiseAhead(capacity + 1, shape)
        on_a_cpu = device.type == "cpu" and library()
        self._compiled = CompiledAdvance(self.x, self.x_0_hat, torch.from_numpy(self._noise.values)) if on_a_cpu else None

    @torch.inference_mode()
    def start(self, slots: Sequence[int], seeds: Sequence[int], indices: Sequence[int]) -> None:
        """Put x_T into the slots of new chains: draw 0 of their noise."""
        where, seed, index = onto(self.device, torch.tensor([slots, seeds, indices]))
        self.x[where] = normal(seed, index, torch.zeros_like(index), self.shape)
        self.x_0_hat[where] = 0

    @torch.inference_mode()
    def step(self, batch: Batch) -> None:
        """The chains of the batch take their next row. On CUDA one graph a batch size, captured when it is first met."""
        if self._graphs:
            self._graphs.replay(torch.from_numpy(batch.columns))
        else:
            self._step_on_a_cpu(batch)

    def _whole_step(self, columns: Tensor) -> None:
        slots, t = columns[:2].long()
        self.advance(columns, self.x, self.x_0_hat, self.network(self.x[slots], t))

    def _step_on_a_cpu(self, batch: Batch) -> None:
        slots, t, *addresses = batch.columns[: len(ADDRESS)].astype(np.int64)
        all_x, all_x_0_hat = self.x.numpy(), self.x_0_hat.numpy()
        x = all_x[slots]
        out = self.network(torch.from_numpy(x), torch.from_numpy(t))
        if self._compiled:
            if batch.noisy:
                self._noise.prepare(slots, *addresses)
            self._compiled(batch.columns, out)
            return
        row = batch.columns[len(ADDRESS) :, :, None, None, None].astype(np.float32)
        before = all_x_0_hat[slots] if batch.remembers else None
        noise = self._noise(slots, *addresses) if batch.noisy else None
        with np.errstate(all="ignore"):  # what is not finite is found when the chain has finished
            all_x[slots], all_x_0_hat[slots] = next_state(tuple(row), x, out.numpy(), before, noise)

    @torch.inference_mode()
    def prepare(self, size: int) -> None:
        """Do what the first step of this size would do once. Raises torch.OutOfMemoryError."""
        self.step(Batch.of([], size, self.dummy))

    def wait(self) -> None:
        """Until the device has done what it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @torch.inference_mode()
    def copy_out(self, slots: Sequence[int]) -> Copying:
        """x of the slots as it is now, on its way to the host, float32 (B, C, H, W); the slots may be used again at once."""
        return Copying(self.x[onto(self.device, torch.tensor(slots))])

    def read(self, slots: Sequence[int]) -> Tensor:
        """Likewise, and here."""
        return self.copy_out(slots).result()

    @torch.inference_mode()
    def copy_out_x_0_hat(self, slots: Sequence[int]) -> Copying:
        """As `copy_out`, of x_0_hat."""
        return Copying(self.x_0_hat[onto(self.device, torch.tensor(slots))])

    def read_x_0_hat(self, slots: Sequence[int]) -> Tensor:
        """As `read`, of x_0_hat."""
        return self.copy_out_x_0_hat(slots).result()

    @torch.inference_mode()
    def write(self, slots: Sequence[int], x: Tensor, x_0_hat: Tensor) -> None:
        where = onto(self.device, torch.tensor(slots))
        self.x[where], self.x_0_hat[where] = onto(self.device, x), onto(self.device, x_0_hat)
