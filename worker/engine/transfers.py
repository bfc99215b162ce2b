"""Copies between the host and the device that neither waits for: a GPU has steps to do that were told it before."""

from __future__ import annotations

import torch
from torch import Tensor


class HostCopy:
    """A tensor of the device on its way to the host, after all that the device was told before."""

    def __init__(self, tensor: Tensor) -> None:
        self._done: torch.cuda.Event | None = None
        self._host = tensor
        if tensor.is_cuda:
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(
                tensor, non_blocking=True
            )
            self._done = torch.cuda.Event(blocking=True)
            self._done.record(torch.cuda.current_stream(tensor.device))

    def is_here(self) -> bool:
        return self._done is None or self._done.query()

    def result(self) -> Tensor:
        """On the host; waits until it is here."""
        if self._done is not None:
            self._done.synchronize()
        return self._host


def to_device(device: torch.device, tensor: Tensor) -> Tensor:
    """A tensor of the host on the device. From ordinary memory the host would wait until the device has done all else."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
