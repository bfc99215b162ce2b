"""Steps recorded as CUDA graphs: one for each batch size, replayed with a single launch.

A recorded step is a whole one: gather, network, plan rows, noise, scatter.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

Step = Callable[[Tensor], None]
Recorder = Callable[[Step, Tensor], Callable[[], None]]
# launches that the host is ahead of the device
_AHEAD = 2
# cuDNN and cuBLAS choose kernels and allocate memory in the first runs, which must not be recorded.
_WARM_UPS = 3


class StepGraphs:
    """A step that is recorded when a batch size is first met, and replayed from then on."""

    def __init__(self, step: Step, dummy: int, device: torch.device, record: Recorder) -> None:
        """Record nothing yet.

        Args:
            step: Takes a batch's columns (worker/engine/pool.py), and works on tensors that stay
                where they are.
            dummy: The slot of the chain that pads a batch.
            device: The device of the recorded inputs.
            record: Returns a function that repeats a step on the inputs it was recorded with.
        """
        self._step = step
        self._dummy = dummy
        self._device = device
        self._record = record
        self._recorded: dict[int, tuple[Tensor, Callable[[], None]]] = {}

    def replay(self, columns: Tensor) -> None:
        """Take the step of these columns, float64 (WIDTH, B) on the host.

        Raises:
            torch.OutOfMemoryError: A batch size that was not recorded yet does not fit.
        """
        size = columns.shape[1]
        if size not in self._recorded:
            inputs = torch.zeros_like(columns, device=self._device)
            # The dummy chain's row is zeros, so that recording leaves every chain as it is.
            inputs[0] = self._dummy
            self._recorded[size] = inputs, self._record(self._step, inputs)
        inputs, run = self._recorded[size]
        inputs.copy_(columns.pin_memory() if inputs.is_cuda else columns, non_blocking=True)
        run()


class CudaRecorder:
    """Records steps as CUDA graphs that share one memory pool.

    If the largest batch is recorded first, its activations are the only ones allocated.
    """

    def __init__(self, device: torch.device) -> None:
        """Make the memory pool and the streams. `device` must be the current GPU."""
        self._memory = torch.cuda.graph_pool_handle()
        self._here = torch.cuda.current_stream(device)
        self._aside = torch.cuda.Stream(device)
        self._capture = torch.cuda.Stream(device)
        self._running: deque[torch.cuda.Event] = deque()

    def __call__(self, step: Step, inputs: Tensor) -> Callable[[], None]:
        """Warm the step up, record it, and return the function that launches its graph."""
        self._aside.wait_stream(self._here)
        # always the same stream: cuBLAS keeps memory for each one that it meets
        with torch.cuda.stream(self._aside):
            for _ in range(_WARM_UPS):
                step(inputs)
        self._here.wait_stream(self._aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory, stream=self._capture):
            step(inputs)
        return lambda: self._launch(graph)

    def _launch(self, graph: torch.cuda.CUDAGraph) -> None:
        """Launch, and keep the host few steps ahead, so that what it reports as done nearly is."""
        graph.replay()
        done = torch.cuda.Event(blocking=True)
        done.record()
        self._running.append(done)
        if len(self._running) > _AHEAD:
            self._running.popleft().synchronize()
