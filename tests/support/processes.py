"""Workers as processes of their own, to be watched, stopped and killed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]


class WorkerProcess:
    """`ddpm worker`, ready when the constructor returns."""

    def __init__(self, log: Path, module: str = "cli", **settings: str) -> None:
        """`module` may be another that is a worker when it is called as `python -m <module> worker`."""
        self.log = log
        with log.open("wb") as out:
            env = {**os.environ, **{f"DDPM_{k.upper()}": v for k, v in settings.items()}}
            self.process = subprocess.Popen([sys.executable, "-m", module, "worker"], stdout=out, stderr=out, env=env, cwd=ROOT)
        eventually(lambda: "is ready" in log.read_text() or self.process.poll() is not None, 60, "the worker is ready")
        assert self.process.poll() is None, log.read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self, within_s: float = 10) -> int:
        """SIGTERM; the exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(within_s)


def eventually(condition: Callable[[], object], within_s: float, what: str) -> None:
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until, f"after {within_s} s still not: {what}"
        time.sleep(0.02)


@contextmanager
def later(seconds: float, call: Callable[..., object], *args: object) -> Iterator[None]:
    """`call(*args)` while the block runs; the block ends when it has returned, and what it uses is still there."""
    timer = threading.Timer(seconds, call, args)
    timer.start()
    try:
        yield
    finally:
        timer.join()
