"""A checkpoint as the pool's network: on its device, in its precision, with everything that depends on t alone computed once."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.checkpoints.diffusers_format import Checkpoint
from models.networks.unet import UNet
from worker.backends.cpu.kernels import library
from worker.backends.cpu.layers import pack
from worker.backends.host import make_current
from worker.jobs.domain import Precision
from worker.redaction import client_reason

if TYPE_CHECKING:
    from worker.backends.cuda.unet import GpuUNet  # for which Triton has to be there

log = logging.getLogger(__name__)
Denoiser = Callable[
    [Tensor, Tensor], Tensor
]  # of x float32 (B, C, H, W) and the time features, as float32
BY_PYTORCH, COMPILED = "pytorch", "pytorch, worker/cpu_kernels.c"
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class ServedNetwork:
    """eps_theta with its time features as a table over t, shape (T, F).

    Besides saving time, the table keeps thin matrix products out of the step: they are what made batch sizes disagree in the
    last bit. In bf16 the network's weights and activations are; x, the rows and the noise stay float32. `kernels` says whose run:
    which batch sizes agree depends on that.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        precision: Precision = "fp32",
        sizes: Sequence[int] = (1,),
    ) -> None:
        """`sizes`: batches for which a GPU's kernels are compiled now rather than when they are met."""
        dtype = _DTYPES[precision]
        self.features = _table(checkpoint).to(device, dtype)
        net = copy.deepcopy(checkpoint.net).to(device, dtype)
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stub
        self.kernels = kernels_on_a_cpu() if device.type == "cpu" else BY_PYTORCH
        if device.type == "cuda":
            make_current(device)
            torch.backends.cudnn.deterministic = True
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = (
                False  # fp32 is to mean it
            )
            ours = by_our_kernels(net, self.features[:1], sizes)
            if ours:
                self.kernels = ours.kernels
            self._denoise: Denoiser = ours or _by_pytorch(net, dtype)
        else:
            pack(net)
            self._denoise = _by_pytorch(net, dtype)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """x float32 (B, C, H, W), t int64 (B,) -> float32 (B, C, H, W)."""
        return self._denoise(x, self.features[t])


@torch.inference_mode()
def by_our_kernels(net: UNet, features: Tensor, sizes: Sequence[int]) -> GpuUNet | None:
    """`net` on its GPU, with the same bits in every batch; None, and the log says why, where it cannot be.

    features (1, F): those of any timestep. `sizes`: batches to compile kernels for.
    """
    try:
        from worker.backends.cuda.layers import compile_side_by_side
        from worker.backends.cuda.unet import GpuUNet

        denoise, cfg = GpuUNet(net), net.cfg

        def run(size: int) -> None:
            x = torch.zeros(
                size, cfg.in_channels, cfg.sample_size, cfg.sample_size, device=features.device
            )
            denoise(x, features.expand(size, -1))

        def run_all() -> None:
            with suppress(torch.OutOfMemoryError):  # calibration finds out what does not fit
                for size in sizes:
                    run(size)

        compile_side_by_side(run_all)
        torch.cuda.empty_cache()
        run(1)
        torch.cuda.synchronize(features.device)
    except (
        torch.OutOfMemoryError,
        torch.AcceleratorError,
    ):  # of the latter nothing recovers in this process
        raise
    except (
        Exception
    ) as error:  # no Triton, no C compiler for it, a GPU or a network that ours are not made for
        log.warning(
            "the network runs by PyTorch's kernels, of which few batch sizes agree to the bit: %s",
            client_reason(error),
        )
        return None
    return denoise


def _by_pytorch(net: UNet, dtype: torch.dtype) -> Denoiser:
    def denoise(x: Tensor, features: Tensor) -> Tensor:
        out: Tensor = net.denoise(x.to(dtype, memory_format=torch.channels_last), features)
        return out.to(torch.float32, memory_format=torch.contiguous_format)

    return denoise


def kernels_on_a_cpu() -> str:
    return COMPILED if library() else BY_PYTORCH


def precisions(device: torch.device) -> tuple[Precision, ...]:
    """Those that the device computes natively; elsewhere bf16 is emulated, and slow."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = (
            torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        )
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
