"""CUDA graphs: a whole step (gather, network, rows, noise, scatter) recorded once a batch size and replayed with one launch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_WARM_UPS = 3  # cuDNN and cuBLAS choose and allocate before what they do is recorded


class Graphs:
    """`advance` takes the columns of a batch (worker/pool.py) and works on nothing but tensors that stay where they are."""

    def __init__(self, advance: Callable[[Tensor], None], dummy: int, device: torch.device) -> None:
        self._advance, self._dummy, self._device = advance, dummy, device
        self._memory = torch.cuda.graph_pool_handle()  # one for all: activations are allocated once, for the largest
        self._recorded: dict[int, tuple[Tensor, torch.cuda.CUDAGraph]] = {}

    def replay(self, columns: Tensor) -> None:
        """columns float64 (12, B), on the host. Raises torch.OutOfMemoryError where a new size does not fit."""
        size = columns.shape[1]
        if size not in self._recorded:
            self._recorded[size] = self._record(torch.zeros_like(columns, device=self._device))
        inputs, graph = self._recorded[size]
        inputs.copy_(columns.pin_memory(), non_blocking=True)
        graph.replay()

    def _record(self, inputs: Tensor) -> tuple[Tensor, torch.cuda.CUDAGraph]:
        inputs[0] = self._dummy  # rows of zeros: what runs while recording leaves every chain as it is
        aside = torch.cuda.Stream(self._device)
        aside.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UPS):
                self._advance(inputs)
        torch.cuda.current_stream(self._device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory):
            self._advance(inputs)
        return inputs, graph
