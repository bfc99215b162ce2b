"""`ddpm worker`, which counts the image-steps that it computes where a SIGKILL cannot lose them: in a mapped file."""

from __future__ import annotations

import mmap
import struct
import sys
from pathlib import Path
from typing import Any

from cli.main import app
from worker.engine.engine import Engine

_COUNTS = struct.Struct("<QQ")  # image-steps computed, and those of the latest step


def make_counter(file: Path) -> None:
    file.write_bytes(bytes(_COUNTS.size))


def computed(file: Path) -> int:
    """Image-steps that a worker has computed so far."""
    return int(_COUNTS.unpack(file.read_bytes())[0])


def in_hand(file: Path) -> int:
    """Image-steps of the step that a kill interrupted, at a guess: as many as in the one before."""
    return int(_COUNTS.unpack(file.read_bytes())[1])


def count_in(file: Path) -> None:
    """Wrap the engine's step from now on, for all engines of this process."""
    with file.open("r+b") as opened:
        counter = mmap.mmap(opened.fileno(), _COUNTS.size)
    step, total = Engine.step, 0

    def counted(engine: Engine, *args: Any) -> Any:
        nonlocal total
        before = engine.image_steps
        finished = step(engine, *args)
        latest = engine.image_steps - before
        total += latest
        _COUNTS.pack_into(counter, 0, total, latest)
        return finished

    Engine.step = counted  # type: ignore[method-assign]


if __name__ == "__main__":
    count_in(Path(sys.argv[1]))
    app(["worker"])
