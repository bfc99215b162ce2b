"""The memory that this process may have. Loads no torch, so that commands can ask quickly."""

from __future__ import annotations

import os
from pathlib import Path

# Where control groups are mounted, of version 1 or 2. A container sees its own there.
CGROUP = Path("/sys/fs/cgroup")
# A line for each hierarchy: number, controllers, path of this process' group below the mount.
OWN_GROUPS = Path("/proc/self/cgroup")


def host_memory_bytes(cgroup: Path = CGROUP, own: Path = OWN_GROUPS) -> int:
    """Return the machine's memory, or the least limit of a container or a systemd unit."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [
        int(text)
        for folder in group_folders("memory", cgroup, own)
        for name in ("memory.max", "memory.limit_in_bytes")
        if (text := text_of(folder / name)).isdigit()
    ]
    return min([physical, *limits])


def group_folders(controller: str, cgroup: Path = CGROUP, own: Path = OWN_GROUPS) -> list[Path]:
    """Return the folders of the groups whose limits hold for this process, outermost first.

    They are its own group and those around it, such as a systemd unit and its slice, of version 2
    and of version 1.

    Args:
        controller: `memory` or `cpu`.
        cgroup: where control groups are mounted.
        own: the file that names this process' groups.
    """
    folders = [cgroup, cgroup / controller]
    for line in text_of(own).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        parts = Path(path).parts[1:]
        # A group outside the container's namespace: its limits cannot be seen from here.
        if ".." in parts:
            continue
        if controller in controllers.split(","):
            root = cgroup / controller
        elif number == "0" and not controllers:
            root = cgroup
        else:
            continue
        folders += [root.joinpath(*parts[: depth + 1]) for depth in range(len(parts))]
    return folders


def text_of(path: Path) -> str:
    """Read one of the kernel's files; a file that is not there is empty."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
