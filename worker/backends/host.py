"""What this process may use of the machine, a container's limits included, and what the machine is called."""

from __future__ import annotations

import ctypes
import math
import platform
import re
from pathlib import Path

import torch

from worker.backends.memory import CGROUP, host_memory_bytes, text_of

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_PHYSICAL_CORES = torch.get_num_threads()  # PyTorch's own count, before anybody sets it


def available_cores(cgroup: Path = CGROUP) -> int:
    quota, _, period = text_of(cgroup / "cpu.max").partition(" ")
    limit = math.ceil(int(quota) / int(period)) if quota.isdigit() else _PHYSICAL_CORES
    return max(1, min(_PHYSICAL_CORES, limit))


def memory_bytes(device: torch.device, cgroup: Path = CGROUP) -> int:
    """Of a GPU what is free now; else all that the process may have."""
    return (
        torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else host_memory_bytes(cgroup)
    )


def description(device: torch.device) -> str:
    """Of what times and bits depend on: `AMD EPYC 9R14, AVX512, 8 cores` or `NVIDIA H100 80GB HBM3`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    named = re.search(r"^model name\s*: (.*)$", text_of(Path("/proc/cpuinfo")), re.MULTILINE)
    name = named[1] if named else platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}, {available_cores()} cores"


def make_current(device: torch.device) -> None:
    """Streams, events, graphs and Triton's kernels are of the calling thread's current GPU."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def keep_freed_memory() -> None:
    """Have this process keep what it frees for what it allocates next, where its C library can.

    A step frees what the next one asks for again; given back to the kernel in between, every page of it is cleared anew.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_M_MMAP_THRESHOLD, 2**30)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
