"""Copies between the host and a GPU that neither waits for: the GPU has earlier steps to do."""

from __future__ import annotations

import torch
from torch import Tensor


class HostCopy:
    """A copy of a device's tensor on its way to the host, behind the work queued before it."""

    def __init__(self, tensor: Tensor) -> None:
        """Queue the copy, of a tensor of any shape."""
        self._done: torch.cuda.Event | None = None
        self._host = tensor
        if tensor.is_cuda:
            pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host = pinned.copy_(tensor, non_blocking=True)
            self._done = torch.cuda.Event(blocking=True)
            self._done.record(torch.cuda.current_stream(tensor.device))

    def is_here(self) -> bool:
        """Tell whether the copy has arrived, without waiting for it."""
        return self._done is None or self._done.query()

    def result(self) -> Tensor:
        """Wait for the copy, and return it on the host."""
        if self._done is not None:
            self._done.synchronize()
        return self._host


def to_device(device: torch.device, tensor: Tensor) -> Tensor:
    """Copy a tensor of the host to the device, without waiting.

    The copy starts from pinned memory: from ordinary memory, the host would wait until the device
    has done everything queued before.
    """
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
