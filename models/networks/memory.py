"""Memory that a device or the host did not have."""

from __future__ import annotations

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether the device or the host had no memory for a tensor.

    PyTorch has a class for the device's own memory only. Of pinned and of ordinary memory it says
    the rest in words.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(said in str(error) for said in words)
