"""The machine as this process may use it, a container's limits included, and its name."""

from __future__ import annotations

import ctypes
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from worker.backends.cores import within_core_limits
from worker.backends.memory import CGROUP, OWN_GROUPS, host_memory_bytes, text_of

# parameters of mallopt, in malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
# PyTorch's own count, before anybody sets it
PHYSICAL_CORES = torch.get_num_threads()

_COMPUTED_ON = ("cpu", "cuda")


class UnusableDevice(ValueError):
    """A device that this process cannot use.

    The text is what was asked for, a fact and a remedy: "cuda:1 but torch sees 1 CUDA devices; use
    cpu or auto".

    Attributes:
        reason: Why not, in PyTorch's words.
    """

    def __init__(self, asked: str, fact: str, remedy: str, reason: str) -> None:
        """Join the parts of the text, and keep the reason."""
        super().__init__(f"{asked} {fact}; {remedy}")
        self.reason = reason


def choose_device(asked: str) -> torch.device:
    """Choose the device to compute on: `auto` is CUDA if this process has it, else the CPU.

    Raises:
        UnusableDevice: PyTorch knows no such device, or cannot use it.
    """
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    any_device = "use cpu, cuda, cuda:1 or auto"
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise UnusableDevice(asked, "is no device", any_device, _first_line(error)) from None
    if device.type not in _COMPUTED_ON:
        fact = "is a device of PyTorch's that nothing here computes on"
        raise UnusableDevice(asked, fact, any_device, f"{device.type} is not supported")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = _first_line(error)
        count = torch.cuda.device_count()
        if device.type == "cuda" and (device.index or 0) >= count:
            fact = f"but torch sees {count} CUDA devices"
            raise UnusableDevice(asked, fact, "use cpu or auto", reason) from None
        raise UnusableDevice(asked, f"cannot be used ({reason})", any_device, reason) from None
    return device


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0]


def available_cores(
    cgroup: Path = CGROUP, physical: int | None = None, own: Path = OWN_GROUPS
) -> int:
    """Count the cores that this process may use, one at least.

    Args:
        cgroup: Where control groups are mounted, which hold limits of containers and units.
        physical: The machine's cores. None: PyTorch's count of them.
        own: The file that names this process' groups.
    """
    physical = PHYSICAL_CORES if physical is None else physical
    return within_core_limits(physical, cgroup, own)


@dataclass(frozen=True, slots=True)
class HostShare:
    """What a model may use of the machine that its worker runs on.

    Attributes:
        most_threads: CPU threads at most; None: as many as this process may use.
        models: Models of the worker, which share a CPU's memory.
    """

    most_threads: int | None = None
    models: int = 1

    @property
    def cores(self) -> int:
        """Cores to compute on."""
        return min(available_cores(), self.most_threads or available_cores())

    def memory_bytes(self, device: torch.device) -> int:
        """Return the memory to place the model by.

        Of a GPU it is all that is free, because the models that came before have taken theirs.
        """
        return memory_bytes(device) // (1 if device.type == "cuda" else self.models)


# of a model that shares the machine with no other
WHOLE_HOST = HostShare()


def memory_bytes(device: torch.device, cgroup: Path = CGROUP) -> int:
    """Return a GPU's free memory, or else all memory that this process may have."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return host_memory_bytes(cgroup)


def description(device: torch.device, cores: int | None = None) -> str:
    """Name what times and bits depend on.

    Args:
        device: What is described.
        cores: Cores to compute on. None: as many as this process may use.

    Returns:
        For example `AMD EPYC 9R14, AVX512, 8 cores`, or `NVIDIA H100 80GB HBM3`.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    named = re.search(r"^model name\s*: (.*)$", text_of(Path("/proc/cpuinfo")), re.MULTILINE)
    name = named[1] if named else platform.processor() or platform.machine()
    cores = cores or available_cores()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}, {cores} cores"


def make_current(device: torch.device) -> None:
    """Make a GPU the calling thread's current one, whose streams, graphs and kernels it uses."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def give_back_memory() -> None:
    """Give what this process has freed back to the system, if its C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def keep_freed_memory() -> None:
    """Make this process keep the memory that it frees, if its C library can.

    A step frees what the next one asks for again. If the memory went back to the kernel in between,
    the kernel would clear every page of it again.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_M_MMAP_THRESHOLD, 2**30)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
