"""The device that a command computes on."""

from __future__ import annotations

import torch

from cli.faults import Fault


def choose_device(asked: str) -> torch.device:
    """Return the device that the user asked for; `auto` is CUDA where there is one.

    Raises:
        Fault: The device cannot be used.
    """
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise Fault(
            f"--device {asked} cannot be used ({reason}); give cpu, cuda, cuda:1 or auto"
        ) from None
    return device
