"""A checkpoint as the pool's network: on its device, with everything that depends on t alone computed once."""

from __future__ import annotations

import torch
from torch import Tensor

from models.checkpoint import Checkpoint


class TabledNetwork:
    """eps_theta with its time features as a table over t, shape (T, F).

    Besides saving time, this keeps thin matrix products out of the step: they are what made batch sizes disagree in the last bit.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        # the table is always made on the CPU in float32, so that every device starts from the same numbers
        with torch.inference_mode():
            self.features = checkpoint.net.time_features(torch.arange(checkpoint.schedule.T)).to(device)
        self.net = checkpoint.net.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stub

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """x float32 (B, C, H, W), t int64 (B,) -> float32 (B, C, H, W)."""
        return self.net.denoise(x.contiguous(memory_format=torch.channels_last), self.features[t])
