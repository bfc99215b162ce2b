"""The functions of worker/backends/cpu/kernels.c, if it was compiled at installation."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import re
import sys
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from models.networks.layers import ActivatedNorm
from worker.logs import event

log = logging.getLogger(__name__)
LIBRARY = Path(__file__).with_name("libcpu_kernels.so")
SOURCE = LIBRARY.with_name("kernels.c")
# as kernels.c counts them
_ACTIVATIONS = ("none", "silu", "mish", "gelu", "relu")
_OPENMP = re.compile(r"/lib(gomp|iomp5|omp)\b[^/]*$")


@cache
def library() -> ctypes.CDLL | None:
    """Load the compiled functions, once.

    Returns:
        The functions, or None if they are missing or do not fit. The log then says why.
    """
    if sys.platform != "linux":
        log.info(
            "steps are slower than they could be:"
            " worker/backends/cpu/kernels.c is compiled on Linux only",
            extra=event("kernels.missing"),
        )
        return None
    try:
        found = load(LIBRARY, SOURCE)
    except (OSError, ValueError) as error:
        log.warning(
            "steps are slower than they could be: %s;"
            " install this package again where GCC 12 or newer is",
            error,
            extra=event("kernels.missing"),
        )
        return None
    return found


def load(library: Path, source: Path) -> ctypes.CDLL:
    """Load the functions of a library that was compiled from `source`.

    Raises:
        OSError: It cannot be loaded, or was compiled from another source.
        ValueError: It is no library of this project.
    """
    ctypes.CDLL(openmp(Path("/proc/self/maps").read_text()), mode=ctypes.RTLD_GLOBAL)
    found = ctypes.CDLL(str(library))
    compiled = (ctypes.c_char * 64).in_dll(found, "source").raw.decode()
    if compiled != hashlib.sha256(source.read_bytes()).hexdigest():
        raise OSError(f"{library} was compiled of another {source.name}")
    at, size, flag = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
    tensors, sizes = [at, at, at, at], [size, size, size, size]
    found.group_norm.argtypes = [*tensors, *sizes, ctypes.c_float, flag, flag, flag]
    found.gather.argtypes = found.advance.argtypes = [at, at, at, at, size, size]
    found.start.argtypes = [at, at, at, size, size]
    for function in (found.group_norm, found.start, found.gather, found.advance):
        function.restype = None
    return found


def openmp(maps: str) -> str:
    """Find the loaded OpenMP library that torch's threads come from.

    The threads of a second library would wait for the same cores.

    Args:
        maps: The text of /proc/self/maps, which lists what this process has loaded.

    Raises:
        OSError: No OpenMP library is loaded.
    """
    paths = [line.split(maxsplit=5)[5] for line in maps.splitlines() if _OPENMP.search(line)]
    if not paths:
        raise OSError("torch has loaded no library of OpenMP")
    packages = str(Path(torch.__file__).parents[1])
    return max(paths, key=lambda path: path.startswith(packages))


class CompiledNorm(nn.Module):
    """GroupNorm by the compiled function, with the activation that an ActivatedNorm has.

    Whatever lies between x and the result is float32 or wider.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        """Take the weights of `norm`. The compiled library must be there."""
        super().__init__()
        self.weight = norm.weight.detach().float().contiguous()
        self.bias = norm.bias.detach().float().contiguous()
        self.groups = norm.num_groups
        self.eps = norm.eps
        named = norm.activation if isinstance(norm, ActivatedNorm) else "none"
        self.activation = _ACTIVATIONS.index(named)
        self.bf16 = norm.weight.dtype == torch.bfloat16
        self.run = _functions().group_norm

    def forward(self, x: Tensor, modulation: Tensor | None = None) -> Tensor:
        """Normalise x (B, C, H, W), float32 or bf16 as the weights were; channels_last.

        `modulation` (B, 2C) holds each image's scales - 1, then its shifts, which become its own
        weights.
        """
        B, C, H, W = x.shape
        x = x.contiguous(memory_format=torch.channels_last)
        weight, bias = self.weight, self.bias
        if modulation is not None:
            scale, shift = modulation.float().chunk(2, dim=1)
            weight, bias = weight * (1 + scale), bias * (1 + scale) + shift
        out = torch.empty_like(x)
        self.run(
            x.data_ptr(),
            weight.data_ptr(),
            bias.data_ptr(),
            out.data_ptr(),
            B,
            H * W,
            C,
            self.groups,
            self.eps,
            modulation is not None,
            self.activation,
            self.bf16,
        )
        return out


def start(chains: Tensor, x: Tensor, x_0_hat: Tensor) -> None:
    """Do what `worker.engine.step.start` does, by the compiled function."""
    chains = chains.contiguous()
    tensors = (tensor.data_ptr() for tensor in (chains, x, x_0_hat))
    _functions().start(*tensors, chains.shape[1], x.stride(0))


def gather(columns: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Do what `worker.engine.step.gather` does, by the compiled function."""
    B = columns.shape[1]
    own_x = x.new_empty(B, *x.shape[1:])
    t = torch.empty(B, dtype=torch.int64)
    tensors = (tensor.data_ptr() for tensor in (columns, x, own_x, t))
    _functions().gather(*tensors, B, x.stride(0))
    return own_x, t


def advance(columns: Tensor, x: Tensor, x_0_hat: Tensor, out: Tensor) -> None:
    """Do what `worker.engine.step.advance` does, by the compiled function."""
    assert (out.dtype, out.shape) == (torch.float32, (columns.shape[1], *x.shape[1:]))
    out = out.contiguous()
    tensors = (tensor.data_ptr() for tensor in (columns, x, x_0_hat, out))
    _functions().advance(*tensors, len(out), x.stride(0))


def _functions() -> ctypes.CDLL:
    found = library()
    assert found
    return found
