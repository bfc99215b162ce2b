"""Runs a command that dies with its parent: `python die_with_parent.py SIGNAL PARENT COMMAND...`.

`kill -9` of the supervisor must not leave workers behind that nobody restarts or stops. The kernel
sends SIGNAL when the parent is gone, and this setting survives exec. Only Linux can do it.
Elsewhere the command just runs, and the data folder's lock, which the server inherits, keeps a
second `ddpm up` away from an orphan.
"""

from __future__ import annotations

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1


def main(signal_number: int, parent: int, command: list[str]) -> None:
    """Replace this process by `command`, which gets `signal_number` when `parent` ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal_number)
    # The parent may have ended before the kernel knew of it.
    if os.getppid() != parent:
        sys.exit(1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
