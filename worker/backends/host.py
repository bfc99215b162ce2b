"""The machine as this process may use it, a container's limits included, and its name."""

from __future__ import annotations

import ctypes
import math
import platform
import re
from pathlib import Path

import torch

from worker.backends.memory import (
    CGROUP,
    OWN_GROUPS,
    group_folders,
    host_memory_bytes,
    text_of,
)

# parameters of mallopt, in malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
# PyTorch's own count, before anybody sets it
PHYSICAL_CORES = torch.get_num_threads()


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
    limits = [_core_limit(folder) for folder in group_folders("cpu", cgroup, own)]
    return max(1, min(physical, *(physical if limit is None else limit for limit in limits)))


def _core_limit(group: Path) -> int | None:
    """Return the cores' worth of time that a control group may use, rounded up."""
    quota, _, period = text_of(group / "cpu.max").partition(" ")
    if not quota:
        quota = text_of(group / "cpu.cfs_quota_us")
        period = text_of(group / "cpu.cfs_period_us")
    # Without a limit it is `max`, or -1.
    return math.ceil(int(quota) / int(period)) if quota.isdigit() and period.isdigit() else None


def memory_bytes(device: torch.device, cgroup: Path = CGROUP) -> int:
    """Return a GPU's free memory, or else all memory that this process may have."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return host_memory_bytes(cgroup)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether the device or the host had no memory for a tensor.

    PyTorch has a class for the device's own memory only. Of pinned and of ordinary memory it says
    the rest in words.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(said in str(error) for said in words)


def description(device: torch.device) -> str:
    """Name what times and bits depend on.

    Returns:
        For example `AMD EPYC 9R14, AVX512, 8 cores`, or `NVIDIA H100 80GB HBM3`.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    named = re.search(r"^model name\s*: (.*)$", text_of(Path("/proc/cpuinfo")), re.MULTILINE)
    name = named[1] if named else platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}, {available_cores()} cores"


def make_current(device: torch.device) -> None:
    """Make a GPU the calling thread's current one, whose streams, graphs and kernels it uses."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def keep_freed_memory() -> None:
    """Make this process keep the memory that it frees, if its C library can.

    A step frees what the next one asks for again. If the memory went back to the kernel in between,
    the kernel would clear every page of it again.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_M_MMAP_THRESHOLD, 2**30)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
