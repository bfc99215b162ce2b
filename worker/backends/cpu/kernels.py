"""worker/backends/cpu/kernels.c, where it was compiled when the package was installed."""

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

from models.networks.unet import NormSiLU

LIBRARY = Path(__file__).with_name("libcpu_kernels.so")
log = logging.getLogger(__name__)
SOURCE = LIBRARY.with_name("kernels.c")
_OPENMP = re.compile(r"/lib(gomp|iomp5|omp)\b[^/]*$")


@cache
def library() -> ctypes.CDLL | None:
    """Its functions, or None where it is not there or no use, and the log says why."""
    if sys.platform != "linux":
        log.info(
            "steps are slower than they could be: worker/backends/cpu/kernels.c is compiled on Linux only"
        )
        return None
    try:
        ctypes.CDLL(openmp(Path("/proc/self/maps").read_text()), mode=ctypes.RTLD_GLOBAL)
        found = ctypes.CDLL(str(LIBRARY))
        compiled = (ctypes.c_char * 64).in_dll(found, "source").raw.decode()
        if compiled != hashlib.sha256(SOURCE.read_bytes()).hexdigest():
            raise OSError(f"{LIBRARY} was compiled of another {SOURCE.name}")
    except (OSError, ValueError) as error:
        log.warning(
            "steps are slower than they could be: %s; install this package again where GCC 12 or newer is",
            error,
        )
        return None
    at, size, flag = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
    found.group_norm.argtypes = [at, at, at, at, size, size, size, size, ctypes.c_float, flag, flag]
    found.gather.argtypes = found.advance.argtypes = [at, at, at, at, size, size]
    found.group_norm.restype = found.gather.restype = found.advance.restype = None
    return found


def openmp(maps: str) -> str:
    """Of what is loaded, the library that torch's threads come from: a second one's would wait for the same cores.

    Raises OSError for none. `maps` is what Linux says of this process in /proc/self/maps.
    """
    paths = [line.split(maxsplit=5)[5] for line in maps.splitlines() if _OPENMP.search(line)]
    if not paths:
        raise OSError("torch has loaded no library of OpenMP")
    packages = str(Path(torch.__file__).parents[1])
    return max(paths, key=lambda path: path.startswith(packages))


class CompiledNorm(nn.Module):
    """GroupNorm, with the SiLU of a NormSiLU: x (B, C, H, W), float32 or bf16 -> the same, channels_last.

    All between x and the result is float32 or wider.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.weight, self.bias = (
            parameter.detach().float().contiguous() for parameter in (norm.weight, norm.bias)
        )
        self.groups, self.eps, self.silu = norm.num_groups, norm.eps, isinstance(norm, NormSiLU)
        self.bf16 = norm.weight.dtype == torch.bfloat16
        self.run = _functions().group_norm

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        x = x.contiguous(memory_format=torch.channels_last)
        out = torch.empty_like(x)
        tensors = (tensor.data_ptr() for tensor in (x, self.weight, self.bias, out))
        self.run(*tensors, B, H * W, C, self.groups, self.eps, self.silu, self.bf16)
        return out


def gather(columns: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """As `worker.engine.step.gather`."""
    B = columns.shape[1]
    own_x, t = x.new_empty(B, *x.shape[1:]), torch.empty(B, dtype=torch.int64)
    tensors = (tensor.data_ptr() for tensor in (columns, x, own_x, t))
    _functions().gather(*tensors, B, x.stride(0))
    return own_x, t


def advance(columns: Tensor, x: Tensor, x_0_hat: Tensor, out: Tensor) -> None:
    """As `worker.engine.step.advance`."""
    assert (out.dtype, out.shape) == (torch.float32, (columns.shape[1], *x.shape[1:]))
    out = out.contiguous()
    tensors = (tensor.data_ptr() for tensor in (columns, x, x_0_hat, out))
    _functions().advance(*tensors, len(out), x.stride(0))


def _functions() -> ctypes.CDLL:
    found = library()
    assert found
    return found
