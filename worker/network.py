"""A checkpoint as the pool's network: on its device, in its precision, with everything that depends on t alone computed once."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from models.checkpoint import Checkpoint
from worker.contract import Precision
from worker.packed import pack

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class ServedNetwork:
    """eps_theta with its time features as a table over t, shape (T, F).

    Besides saving time, the table keeps thin matrix products out of the step: they are what made batch sizes disagree in the
    last bit. In bf16 the network's weights and activations are; x, the rows and the noise stay float32.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device, precision: Precision = "fp32") -> None:
        self.dtype = _DTYPES[precision]
        self.features = _table(checkpoint).to(device, self.dtype)
        net = copy.deepcopy(checkpoint.net).to(device, self.dtype)
        self.net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stub
        if device.type == "cpu":
            pack(self.net)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """x float32 (B, C, H, W), t int64 (B,) -> float32 (B, C, H, W)."""
        out: Tensor = self.net.denoise(x.to(self.dtype, memory_format=torch.channels_last), self.features[t])
        return out.to(torch.float32, memory_format=torch.contiguous_format)


def precisions(device: torch.device) -> tuple[Precision, ...]:
    """Those that the device computes natively; elsewhere bf16 is emulated, and slow."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return ("fp32", "bf16") if native else ("fp32",)


@torch.inference_mode()
def _table(checkpoint: Checkpoint) -> Tensor:
    """Always made on the CPU by one thread, so that every worker starts from the same numbers: these products are thin."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return checkpoint.net.time_features(torch.arange(checkpoint.schedule.T))
    finally:
        torch.set_num_threads(threads)
