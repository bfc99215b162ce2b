"""Workers as processes of their own, to be watched, stopped and killed.

They are forked from a process that has loaded what a worker loads. Loading is most of a worker's
start.
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).parents[2]
_LOADED = get_context("forkserver")
_LOADED.set_forkserver_preload(["cli.main", "worker.__main__"])


class WorkerProcess:
    """`ddpm worker`, ready when the constructor returns."""

    def __init__(self, log: Path, module: str = "cli", **settings: str) -> None:
        """Start a worker, and wait until it is ready.

        Args:
            log: the file that gets what the worker writes.
            module: is called as `python -m <module> worker`.
            settings: of the worker, without the prefix of their names.
        """
        self.log = log
        log.write_bytes(b"")
        env = {**os.environ, **{f"DDPM_{k.upper()}": v for k, v in settings.items()}}
        self._process = _LOADED.Process(target=_run, args=(module, env, log), daemon=True)
        self._process.start()
        eventually(
            lambda: "is ready" in log.read_text() or not self._process.is_alive(),
            180,
            "the worker is ready",
        )
        assert self._process.is_alive(), log.read_text()

    def signal(self, number: signal.Signals) -> None:
        """Send the process a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def exit_code(self, within_s: float) -> int:
        """Wait for the process to end; return its exit code."""
        self._process.join(within_s)
        assert self._process.exitcode is not None, f"after {within_s} s it still runs"
        return self._process.exitcode

    def kill(self) -> None:
        """End the process by SIGKILL."""
        self._process.kill()
        self._process.join()

    def request_stop(self) -> None:
        """Send the process SIGTERM."""
        self._process.terminate()

    def stop(self, within_s: float = 10) -> int:
        """Send SIGTERM unless the process has ended; return its exit code."""
        self.request_stop()
        return self.exit_code(within_s)


def run_ddpm(words: Sequence[str], env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `ddpm` with these words and this environment, and return what it wrote.

    It is forked as workers are, because a process of its own would load torch for seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        args = ("cli", words, dict(env), out, err)
        process = _LOADED.Process(target=_become, args=args, daemon=True)
        process.start()
        process.join()
        assert process.exitcode is not None
        return subprocess.CompletedProcess(
            words, process.exitcode, out.read_text(), err.read_text()
        )


def _run(module: str, env: dict[str, str], log: Path) -> None:
    """Become `python -m <module> worker`."""
    _become(module, ["worker"], env, log, log)


def _become(module: str, words: Sequence[str], env: dict[str, str], out: Path, err: Path) -> None:
    """Become `python -m <module> <words>`, whose output goes to files."""
    with out.open("ab") as output, err.open("ab") as errors:
        os.dup2(output.fileno(), sys.stdout.fileno())
        os.dup2(errors.fileno(), sys.stderr.fileno())
    os.environ.clear()
    os.environ.update(env)
    os.chdir(ROOT)
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def eventually(condition: Callable[[], object], within_s: float, what: str) -> None:
    """Wait for the condition; fail after `within_s` seconds."""
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until, f"after {within_s} s still not: {what}"
        time.sleep(0.02)


@contextmanager
def later(seconds: float, call: Callable[..., object], *args: object) -> Iterator[None]:
    """Call `call(*args)` some seconds after the block begins.

    The block ends only when the call has returned, so that what it uses is still there.
    """
    timer = threading.Timer(seconds, call, args)
    timer.start()
    try:
        yield
    finally:
        timer.join()
