"""The cores that this process may use. Loads no torch, so that the API's command can ask."""

from __future__ import annotations

import math
from pathlib import Path

from worker.backends.memory import CGROUP, OWN_GROUPS, group_folders, text_of


def within_core_limits(cores: int, cgroup: Path = CGROUP, own: Path = OWN_GROUPS) -> int:
    """Return `cores`, or the least limit of a container or a systemd unit; one at least.

    Args:
        cores: Cores that there are.
        cgroup: Where control groups are mounted.
        own: The file that names this process' groups.
    """
    limits = (_core_limit(folder) for folder in group_folders("cpu", cgroup, own))
    return max(1, min([cores, *(limit for limit in limits if limit is not None)]))


def _core_limit(group: Path) -> int | None:
    """Return the cores' worth of time that a control group may use, rounded up."""
    quota, _, period = text_of(group / "cpu.max").partition(" ")
    if not quota:
        quota = text_of(group / "cpu.cfs_quota_us")
        period = text_of(group / "cpu.cfs_period_us")
    # Without a limit it is `max`, or -1.
    return math.ceil(int(quota) / int(period)) if quota.isdigit() and period.isdigit() else None
