"""The memory that this process may have. Loads no torch, so that commands can ask quickly."""

from __future__ import annotations

import os
from pathlib import Path

# version 2, as a container sees its own
CGROUP = Path("/sys/fs/cgroup")


def host_memory_bytes(cgroup: Path = CGROUP) -> int:
    """Return the machine's memory, or a container's limit if that is less."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = text_of(cgroup / "memory.max")
    return min(physical, int(limit)) if limit.isdigit() else physical


def text_of(path: Path) -> str:
    """Read one of the kernel's files; a file that is not there is empty."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
