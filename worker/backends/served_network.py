"""A checkpoint as the pool runs it: on its device, in its precision, with its time features."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.checkpoints.diffusers_format import Checkpoint
from models.networks.network import DenoisingNetwork
from worker.backends.cpu.kernels import library
from worker.backends.cpu.layers import has_bf16, pack
from worker.backends.features import features_of
from worker.backends.host import make_current
from worker.jobs.domain import Precision
from worker.redaction import client_reason

if TYPE_CHECKING:
    # imports Triton, which is not on every machine
    from worker.backends.cuda.unet import GpuUNet

from worker.logs import event

log = logging.getLogger(__name__)
# x float32 (B, C, H, W) and time features (B, F) -> float32 (B, C, H, W)
Denoiser = Callable[[Tensor, Tensor], Tensor]
# What workers report as their kernels. Part of the contract with workers of other versions.
BY_PYTORCH = "pytorch"
COMPILED = "pytorch, worker/cpu_kernels.c"
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class ServedNetwork:
    """eps_theta, with features of timesteps and classes that no batch changes.

    In bf16 the network's weights and activations are bf16; x, the plans' rows and the noise stay
    float32.

    Attributes:
        features: Computes the features (worker/backends/features.py).
        kernels: Whose kernels run. Which batch sizes agree to the bit depends on them.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        precision: Precision = "fp32",
        sizes: Sequence[int] = (1,),
        class_rows: int = 0,
    ) -> None:
        """Copy the checkpoint's network to the device.

        Args:
            checkpoint: The network, which stays as it is.
            device: Where to run it.
            precision: What its weights and activations are.
            sizes: Batch sizes whose kernels a GPU compiles now rather than at their first step.
            class_rows: Rows of the network's embedding of classes; 0 if it takes none.

        Raises:
            torch.OutOfMemoryError: The network does not fit the GPU.
            ValueError: The network has another number of rows of classes.
        """
        dtype = _DTYPES[precision]
        T = checkpoint.schedule.T
        self.features = features_of(checkpoint.net, T, dtype, device, class_rows)
        net = copy.deepcopy(checkpoint.net).to(device, dtype)
        # torch's stub lacks this overload
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.kernels = kernels_on_a_cpu() if device.type == "cpu" else BY_PYTORCH
        if device.type == "cuda":
            make_current(device)
            torch.backends.cudnn.deterministic = True
            # fp32 means float32 products
            torch.backends.cudnn.allow_tf32 = False
            torch.backends.cuda.matmul.allow_tf32 = False
            first = torch.zeros(1, dtype=torch.long, device=device)
            ours = by_our_kernels(net, self.features(first, first), sizes)
            if ours:
                self.kernels = ours.kernels
            self._denoise: Denoiser = ours or _by_pytorch(net, dtype)
        else:
            pack(net)
            self._denoise = _by_pytorch(net, dtype)

        self._divide_by_t = net.divide_by_t if net.divides_by_t else None

    def __call__(self, x: Tensor, t: Tensor, rows: Tensor | None = None) -> Tensor:
        """Run the network.

        Args:
            x: float32 (B, C, H, W).
            t: int64 (B,).
            rows: Rows of the embedding of classes, int64 (B,). None if the network takes none.

        Returns:
            float32 (B, C', H, W).
        """
        out = self._denoise(x, self.features(t, rows))
        return out if self._divide_by_t is None else self._divide_by_t(out, t)


@torch.inference_mode()
def by_our_kernels(net: DenoisingNetwork, features: Tensor, sizes: Sequence[int]) -> GpuUNet | None:
    """Run a network by this project's kernels, which give the same bits in every batch.

    Args:
        net: The network, on its GPU.
        features: The time features of any timestep, (1, F).
        sizes: Batch sizes to compile kernels for.

    Returns:
        The network, or None if the kernels cannot run it here. The log then says why not.

    Raises:
        torch.OutOfMemoryError: Not even one image fits the GPU's memory.
        torch.AcceleratorError: The GPU failed, and no call in this process can succeed any more.
    """
    try:
        from worker.backends.cuda.layers import compile_side_by_side
        from worker.backends.cuda.unet import GpuUNet

        denoise = GpuUNet(net)
        shape = net.cfg.shape

        def run(size: int) -> None:
            x = torch.zeros(size, *shape, device=features.device)
            denoise(x, features.expand(size, -1))

        def run_all() -> None:
            # calibration finds out what does not fit
            with suppress(torch.OutOfMemoryError):
                for size in sizes:
                    run(size)

        compile_side_by_side(run_all)
        torch.cuda.empty_cache()
        run(1)
        torch.cuda.synchronize(features.device)
    # nothing in this process recovers from the latter
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    # no Triton, no C compiler for it, or a GPU or a network that the kernels are not made for
    except Exception as error:
        log.warning(
            "the network runs by PyTorch's kernels, of which few batch sizes agree to the bit: %s",
            client_reason(error),
            extra=event("kernels.missing"),
        )
        return None
    return denoise


def _by_pytorch(net: DenoisingNetwork, dtype: torch.dtype) -> Denoiser:
    def denoise(x: Tensor, features: Tensor) -> Tensor:
        out: Tensor = net.denoise(x.to(dtype, memory_format=torch.channels_last), features)
        return out.to(torch.float32, memory_format=torch.contiguous_format)

    return denoise


def kernels_on_a_cpu() -> str:
    """Name the kernels that run a network on this machine's CPU."""
    return COMPILED if library() else BY_PYTORCH


def precisions(device: torch.device) -> tuple[Precision, ...]:
    """List the precisions that a device computes natively: emulated bf16 is slow."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = has_bf16()
    return ("fp32", "bf16") if native else ("fp32",)
