"""The memory that this process may have. Without torch, so that the command may ask, too."""

from __future__ import annotations

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")  # version 2, as a container sees its own


def host_memory_bytes(cgroup: Path = CGROUP) -> int:
    """The machine's, or what a container may have of it."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = text_of(cgroup / "memory.max")
    return min(physical, int(limit)) if limit.isdigit() else physical


def text_of(path: Path) -> str:
    """Of one of the kernel's files; empty where it is not there."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
