"""`ddpm worker` with a count of its image-steps, in a mapped file that outlives a SIGKILL.

`python -m tests.chaos.counted_worker FILE [SLOWNESS [short]]`: each step takes SLOWNESS times as
long, and `short` is for leases of a third of the time.
"""

from __future__ import annotations

import mmap
import struct
import sys
import time
from pathlib import Path
from typing import Any

from cli.main import app
from tests.support.short_leases import shorten
from worker.engine.engine import Engine

# Image-steps computed, and those of the latest step.
_COUNTS = struct.Struct("<QQ")


def make_counter(file: Path) -> None:
    """Make a file that counts from 0."""
    file.write_bytes(bytes(_COUNTS.size))


def computed(file: Path) -> int:
    """Return the image-steps that a worker has computed so far."""
    return int(_COUNTS.unpack(file.read_bytes())[0])


def in_hand(file: Path) -> int:
    """Estimate the image-steps of the step that a kill interrupted, as those of the one before."""
    return int(_COUNTS.unpack(file.read_bytes())[1])


def count_in(file: Path, slowness: float = 1.0) -> None:
    """Count the image-steps of all engines of this process from now on, and slow each step."""
    with file.open("r+b") as opened:
        counter = mmap.mmap(opened.fileno(), _COUNTS.size)
    step = Engine.step
    total = 0

    def counted(engine: Engine, *args: Any) -> Any:
        nonlocal total
        before, began = engine.image_steps, time.monotonic()
        finished = step(engine, *args)
        time.sleep((slowness - 1) * (time.monotonic() - began))
        latest = engine.image_steps - before
        total += latest
        _COUNTS.pack_into(counter, 0, total, latest)
        return finished

    Engine.step = counted  # type: ignore[method-assign]


if __name__ == "__main__":
    count_in(Path(sys.argv[1]), *map(float, sys.argv[2:3]))
    if sys.argv[3:]:
        shorten()
    app(["worker"])
