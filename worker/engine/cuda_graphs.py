"""A whole step (gather, network, rows, noise, scatter) recorded once a batch size and replayed: on CUDA with a single launch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

Step = Callable[[Tensor], None]
Recorder = Callable[[Step, Tensor], Callable[[], None]]
_AHEAD = 2
_WARM_UPS = 3  # cuDNN and cuBLAS choose and allocate before what they do is recorded


class StepGraphs:
    """`step` takes the columns of a batch (worker/engine/pool.py), and works on tensors that stay where they are."""

    def __init__(self, step: Step, dummy: int, device: torch.device, record: Recorder) -> None:
        self._step, self._dummy, self._device, self._record = step, dummy, device, record
        self._recorded: dict[int, tuple[Tensor, Callable[[], None]]] = {}

    def replay(self, columns: Tensor) -> None:
        """columns float64 (12, B), on the host. Raises torch.OutOfMemoryError where a new size does not fit."""
        size = columns.shape[1]
        if size not in self._recorded:
            inputs = torch.zeros_like(columns, device=self._device)
            inputs[0] = self._dummy  # rows of zeros: recording leaves every chain as it is
            self._recorded[size] = inputs, self._record(self._step, inputs)
        inputs, run = self._recorded[size]
        inputs.copy_(columns.pin_memory() if inputs.is_cuda else columns, non_blocking=True)
        run()


class CudaRecorder:
    """The graphs that it records share one memory: activations are allocated once, if the largest batch is recorded first."""

    def __init__(self, device: torch.device) -> None:
        self._memory = torch.cuda.graph_pool_handle()
        self._here, self._aside, self._capture = (
            torch.cuda.current_stream(device),
            *(torch.cuda.Stream(device) for _ in range(2)),
        )
        self._running: deque[torch.cuda.Event] = deque()

    def __call__(self, step: Step, inputs: Tensor) -> Callable[[], None]:
        self._aside.wait_stream(self._here)
        with torch.cuda.stream(
            self._aside
        ):  # always the same: cuBLAS keeps memory for each stream that it meets
            for _ in range(_WARM_UPS):
                step(inputs)
        self._here.wait_stream(self._aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory, stream=self._capture):
            step(inputs)
        return lambda: self._launch(graph)

    def _launch(self, graph: torch.cuda.CUDAGraph) -> None:
        """The host keeps few steps ahead of the device, so that what it reports as done nearly is."""
        graph.replay()
        done = torch.cuda.Event(blocking=True)
        done.record()
        self._running.append(done)
        if len(self._running) > _AHEAD:
            self._running.popleft().synchronize()
