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
        self.features = _table(checkpoint).to(device)
        self.net = checkpoint.net.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stub

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """x float32 (B, C, H, W), t int64 (B,) -> float32 (B, C, H, W)."""
        return self.net.denoise(x.contiguous(memory_format=torch.channels_last), self.features[t])


@torch.inference_mode()
def _table(checkpoint: Checkpoint) -> Tensor:
    """Always made on the CPU by one thread, so that every worker starts from the same numbers: these products are thin."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return checkpoint.net.time_features(torch.arange(checkpoint.schedule.T))
    finally:
        torch.set_num_threads(threads)
