"""A checkpoint as the pool's network: on its device, in its precision, with everything that depends on t alone computed once."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from importlib.util import find_spec
from shutil import which
from typing import cast

import torch
from torch import Tensor

from models.checkpoint import Checkpoint
from models.unet import UNet
from worker.contract import Precision
from worker.packed import pack

_Denoise = Callable[[Tensor, Tensor], Tensor]  # of x and the time features
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_COMPILED = "-compiled"
_MODELS = 64  # in one process; PyTorch takes the eighth for a mistake
_TYPICAL = 16  # the batch size that compiled kernels are made for, in every worker


class ServedNetwork:
    """eps_theta with its time features as a table over t, shape (T, F).

    Besides saving time, the table keeps thin matrix products out of the step: they are what made batch sizes disagree in the
    last bit. In bf16 the network's weights and activations are; x, the rows and the noise stay float32.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device, precision: Precision = "fp32") -> None:
        self.dtype = _DTYPES[precision.removesuffix(_COMPILED)]
        self.compiled = is_compiled(precision)
        self.features = _table(checkpoint).to(device, self.dtype)
        if device.type == "cuda":
            torch.backends.cudnn.deterministic = True
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # fp32 is to mean it
        net = copy.deepcopy(checkpoint.net).to(device, self.dtype)
        self.net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stub
        self._denoise: _Denoise = self.net.denoise
        if self.compiled:
            self._denoise = _compile(self.net)
            self._try(device)
        elif device.type == "cpu":
            pack(self.net)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """x float32 (B, C, H, W), t int64 (B,) -> float32 (B, C, H, W). B is 2 or more where it is compiled."""
        x, features = x.to(self.dtype, memory_format=torch.channels_last), self.features[t]
        if self.compiled:  # once for all batch sizes: that is soonest done, and kernels that are the same agree
            for batched in (x, features):
                torch._dynamo.mark_dynamic(batched, 0)
        out: Tensor = self._denoise(x, features)
        return out.to(torch.float32, memory_format=torch.contiguous_format)

    @torch.inference_mode()
    def _try(self, device: torch.device) -> None:
        """Compile, for a typical batch."""
        cfg = self.net.cfg
        nothing = torch.zeros(_TYPICAL, cfg.in_channels, cfg.sample_size, cfg.sample_size, device=device)
        self(nothing, torch.zeros(_TYPICAL, dtype=torch.int64, device=device))


def precisions(device: torch.device) -> tuple[Precision, ...]:
    """Those that the device computes natively, not compiled; elsewhere bf16 is emulated, and slow."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return ("fp32", "bf16") if native else ("fp32",)


def possible(device: torch.device) -> tuple[Precision, ...]:
    """And those compiled, where what PyTorch's compiler needs is there: Triton, or a C++ compiler for a CPU."""
    found = find_spec("triton") if device.type == "cuda" else which(os.environ.get("CXX", "g++"))
    plain = precisions(device)
    return (*plain, *map(compiled, plain)) if found else plain


def compiled(precision: Precision) -> Precision:
    return cast("Precision", precision + _COMPILED)


def is_compiled(precision: Precision) -> bool:
    return precision.endswith(_COMPILED)


def _compile(net: UNet) -> _Denoise:
    """To the same kernels in every process and for every batch size: by itself PyTorch times several and takes the fastest."""
    torch._dynamo.config.recompile_limit = _MODELS
    wanted = {"batch_invariant", "deterministic"} & set(torch._inductor.list_options())
    return torch.compile(net.denoise, fullgraph=True, dynamic=False, options=dict.fromkeys(sorted(wanted), True))


@torch.inference_mode()
def _table(checkpoint: Checkpoint) -> Tensor:
    """Always made on the CPU by one thread, so that every worker starts from the same numbers: these products are thin."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return checkpoint.net.time_features(torch.arange(checkpoint.schedule.T))
    finally:
        torch.set_num_threads(threads)
