"""Chains on the device: they lie in slots, and a step gathers some, runs the network, and scatters.

On CUDA a whole step is one graph. On a CPU, compiled functions of this project do what is around
the network: PyTorch's operations on a few images take longer to call than to run.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import chain

import torch
from torch import Tensor

from models.diffusion.sampling import split
from worker.backends.host import make_current
from worker.engine.cuda_graphs import CudaRecorder, Recorder, StepGraphs
from worker.engine.step import OF_CLASSES, WIDTH, fastest_on, guided
from worker.engine.transfers import HostCopy, to_device

# x (B, C, H, W), t (B,), and rows of the embedding of classes (B,) if it has one -> (B, C', H, W)
ServableNetwork = Callable[..., Tensor]


def columns_of(
    chains: Sequence[tuple[float, ...]], size: int, dummy: int, width: int = WIDTH
) -> Tensor:
    """Describe a step on the host: one column a chain, so that one copy takes it to the device.

    A column is the numbers of ADDRESS and those of the plan's row. float64 holds every
    seed (below 2^53) and every float32 exactly.

    Args:
        chains: The columns, in any order.
        size: The batch size. Missing columns are the dummy chain's, whose row is zeros.
        dummy: The dummy chain's slot.
        width: Numbers of a column, which the pool knows.

    Returns:
        float64 (width, size).
    """
    padding = (dummy, *[0] * (width - 1))
    rows = zip(*chains, *[padding] * (size - len(chains)), strict=True)
    numbers = array("d", chain.from_iterable(rows))
    return torch.frombuffer(numbers, dtype=torch.float64).view(width, size)


class Pool:
    """`capacity` slots for chains, and one more for the dummy chain that pads a batch.

    Attributes:
        x: x_t of every slot, float32 (capacity + 1, C, H, W).
        x_0_hat: The last x_0_hat of every slot, float32 (capacity + 1, C, H, W).
        dummy: The dummy chain's slot, the last one.
        is_conditional: Whether the network takes a row of its embedding of classes for each chain.
        width: Numbers of a chain's column.
    """

    def __init__(
        self,
        network: ServableNetwork,
        shape: tuple[int, int, int],
        capacity: int,
        device: torch.device,
        record: Recorder | None = None,
        *,
        dynamic: bool = False,
        learned: bool = False,
        class_rows: int = 0,
        guided: bool = False,
    ) -> None:
        """Allocate the slots.

        Args:
            network: eps_theta, or whatever the plans' rows are made for.
            shape: An image's (C, H, W).
            capacity: How many chains fit.
            device: Where they lie. It becomes the calling thread's current GPU.
            record: How steps are recorded. None: as graphs on CUDA; elsewhere they just run.
            dynamic: Whether plans may threshold images.
            learned: Whether the network returns a variance beside its estimate.
            class_rows: Rows of the network's embedding of classes; 0 if it takes none.
            guided: Whether chains may be guided, which takes a pass without a class before theirs.
        """
        self.network = network
        self.shape = shape
        self.device = device
        self.capacity = capacity
        self.dummy = capacity
        self.x = torch.zeros(capacity + 1, *shape, device=device)
        self.x_0_hat = torch.zeros_like(self.x)
        make_current(device)
        if record is None and device.type == "cuda":
            record = CudaRecorder(device)
        self.draw_x_T, self.gather, self.advance = fastest_on(
            device, dynamic=dynamic, learned=learned
        )
        self.class_rows = class_rows
        self.is_conditional = class_rows > 0
        self.width = WIDTH + len(OF_CLASSES) * self.is_conditional
        self._null_out = torch.zeros_like(self.x) if guided else None
        self._step, self._null_pass = self._whole_step, self._whole_null_pass
        if record:
            self._step = StepGraphs(self._whole_step, self.dummy, device, record).replay
            of_null = StepGraphs(self._whole_null_pass, self.dummy, device, record)
            self._null_pass = of_null.replay

    @torch.inference_mode()
    def start(self, slots: Sequence[int], seeds: Sequence[int], indices: Sequence[int]) -> None:
        """Put x_T of new chains into their slots. It is draw 0 of their noise."""
        chains = to_device(self.device, torch.tensor([slots, seeds, indices]))
        self.draw_x_T(chains, self.x, self.x_0_hat)

    def step(self, columns: Tensor) -> None:
        """Take the next row of the chains that `columns_of` describes, float64 (width, B).

        On CUDA a batch size's graph is recorded when the size is first met. If you step often,
        enter inference mode once: doing it here costs a step of one image half a per cent.

        Raises:
            torch.OutOfMemoryError: A batch size that was not met before does not fit.
        """
        with nullcontext() if torch.is_inference_mode_enabled() else torch.inference_mode():
            self._step(columns)

    def pass_without_class(self, columns: Tensor) -> None:
        """Estimate without a class for chains whose next step is guided.

        Args:
            columns: As for `step`; class_row is that of the null class.

        Raises:
            torch.OutOfMemoryError: A batch size that was not met before does not fit.
        """
        with nullcontext() if torch.is_inference_mode_enabled() else torch.inference_mode():
            self._null_pass(columns)

    def _whole_step(self, columns: Tensor) -> None:
        out = self._output(columns)
        if self._null_out is not None:
            out = guided(columns, out, self._null_out)
        self.advance(columns, self.x, self.x_0_hat, out)

    def _whole_null_pass(self, columns: Tensor) -> None:
        assert self._null_out is not None
        estimate, _ = split(self._output(columns), self.shape[0])
        self._null_out[columns[0].long()] = estimate

    def _output(self, columns: Tensor) -> Tensor:
        x, t = self.gather(columns, self.x)
        return (
            self.network(x, t, columns[WIDTH].long()) if self.is_conditional else self.network(x, t)
        )

    @torch.inference_mode()
    def prepare(self, size: int) -> None:
        """Do now what only the first step of this size does, such as recording its graph.

        Raises:
            torch.OutOfMemoryError: The size does not fit.
        """
        columns = columns_of([], size, self.dummy, self.width)
        self.step(columns)
        if self._null_out is not None:
            self.pass_without_class(columns)

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
