"""Workers whose network only waits: `python -P bench/fleet/stub_worker.py`.

All else of them is real: the process, its threads, the engine, the scheduler, the PNGs.
The script runs with the code of whichever checkout comes first on PYTHONPATH, so it imports nothing
else of bench. It forks workers from a process that has loaded what they load, as its standard input
says, one order a line:

- `start {"counter": FILE, "pace": P, "least_s": S, "env": {...}}` is answered by the worker's
  process id;
- `stop PID` by the worker's exit status;
- `count` by the number of workers that run.

It ends its workers when its standard input is closed.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

# Image-steps computed; when the first step after a rest began, in seconds since the epoch.
COUNTS = struct.Struct("<Qd")
# The engine has rested if nothing stepped for so many seconds.
REST_S = 0.05


def main() -> int:
    """Start and stop workers until the standard input ends, and return the worst exit status."""
    # Loading torch is most of a worker's start.
    work = import_module("worker.__main__").main
    running: list[int] = []
    statuses = [0]
    for line in sys.stdin:
        order, _, argument = line.partition(" ")
        if order == "start":
            running.append(_fork(work, **json.loads(argument)))
            _answer(running[-1])
        elif order.strip() == "count":
            _answer(sum(map(_runs, running)))
        else:
            running.remove(int(argument))
            statuses.append(_end(int(argument)))
            _answer(statuses[-1])
    statuses += map(_end, running)
    return max(statuses)


def replace_network(pace: float, least_s: float) -> None:
    """Let every network wait instead of computing.

    A batch takes its images divided by the pace, and `least_s` or more.
    """
    served = _first("worker.backends.served_network", "worker.network").ServedNetwork

    def wait(_: object, x: Any, t: object) -> Any:
        seconds = max(least_s, len(x) / pace) if pace else least_s
        if seconds:
            time.sleep(seconds)
        return x.new_zeros(x.shape)

    served.__call__ = wait


def count_in(file: Path) -> None:
    """Count the image-steps of all engines of this process in `file`, from now on."""
    file.write_bytes(bytes(COUNTS.size))
    with file.open("r+b") as opened:
        counter = mmap.mmap(opened.fileno(), COUNTS.size)
    engines = _first("worker.engine.engine", "worker.engine").Engine
    step = engines.step
    total, began_at, ended_at = 0, 0.0, 0.0

    def counted(engine: Any, *args: Any) -> Any:
        nonlocal total, began_at, ended_at
        now, before = time.time(), engine.image_steps
        finished = step(engine, *args)
        total += engine.image_steps - before
        if now - ended_at > REST_S:
            began_at = now
        ended_at = time.time()
        COUNTS.pack_into(counter, 0, total, began_at)
        return finished

    engines.step = counted


def _answer(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def _fork(
    work: Callable[[], int], counter: str, pace: float, least_s: float, env: dict[str, str]
) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        # What a worker writes goes to the log, and its input is not the one with the orders.
        os.dup2(2, 1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ |= env
        replace_network(pace, least_s)
        count_in(Path(counter))
        status = work()
    finally:
        os._exit(status)


def _runs(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def _end(child: int) -> int:
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGTERM)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _first(*names: str) -> ModuleType:
    """Import the first module that there is: it was renamed on the way."""
    for name in names:
        try:
            return import_module(name)
        except ModuleNotFoundError:
            continue
    raise ModuleNotFoundError(f"none of {', '.join(names)}")


if __name__ == "__main__":
    sys.exit(main())
