"""The device that a command computes on."""

from __future__ import annotations

import torch

from cli.faults import Fault
from worker.backends.host import UnusableDevice, choose_device


def device_option(asked: str) -> torch.device:
    """Return the device that `--device` names; `auto` is CUDA where there is one.

    Raises:
        Fault: The device cannot be used.
    """
    try:
        return choose_device(asked)
    except UnusableDevice as error:
        raise Fault(f"--device {error}") from None
