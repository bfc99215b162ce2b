"""What this process may use of the machine, a container's limits included, and what the machine is called."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import re
from pathlib import Path

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_CGROUP = Path("/sys/fs/cgroup")  # version 2, as a container sees its own
_PHYSICAL_CORES = torch.get_num_threads()  # PyTorch's own count, before anybody sets it


def available_cores(cgroup: Path = _CGROUP) -> int:
    quota, _, period = _read(cgroup / "cpu.max").partition(" ")
    limit = math.ceil(int(quota) / int(period)) if quota.isdigit() else _PHYSICAL_CORES
    return max(1, min(_PHYSICAL_CORES, limit))


def memory_bytes(device: torch.device, cgroup: Path = _CGROUP) -> int:
    """Of a GPU what is free now; else all that the process may have."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _read(cgroup / "memory.max")
    return min(physical, int(limit)) if limit.isdigit() else physical


def description(device: torch.device) -> str:
    """Of what times and bits depend on: `AMD EPYC 9R14, AVX512, 8 cores` or `NVIDIA H100 80GB HBM3`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    named = re.search(r"^model name\s*: (.*)$", _read(Path("/proc/cpuinfo")), re.MULTILINE)
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


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
