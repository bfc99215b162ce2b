"""The processes that a storm hits, and their supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cli.serve import die_with_parent
from tests.chaos.counted_worker import computed, in_hand, make_counter

ROOT = Path(__file__).parents[2]
RESTART_AFTER_S = 0.5
_MOST_DEATHS = 3


@dataclass
class Actor:
    """A process that `tend` starts, and starts again when it has died. From the main thread only, see cli/serve/child.py."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    folder: Path  # of its log
    process: subprocess.Popen[bytes] | None = None
    stopped: bool = False  # by SIGSTOP
    deaths: list[int] = field(default_factory=list)  # exit codes that nobody asked for
    _start_at: float = 0.0

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def tend(self) -> None:
        """Raises RuntimeError for one that dies by itself again and again."""
        if self.process is not None and not self.alive:
            self.deaths.append(self.process.returncode)
            if len(self.deaths) == _MOST_DEATHS:
                raise RuntimeError(
                    f"{self.name} does not stay alive:\n{self.log.read_text()[-2000:]}"
                )
            self._forget()
        if self.process is None and time.monotonic() >= self._start_at:
            self.start()

    def start(self) -> None:
        leash = [
            sys.executable,
            "-P",
            die_with_parent.__file__,
            str(int(signal.SIGKILL)),
            str(os.getpid()),
        ]
        with self.log.open("ab") as log:
            env = {
                name: value for name, value in os.environ.items() if not name.startswith("DDPM_")
            } | dict(self.env)
            self.process = subprocess.Popen(
                [*leash, *self.command], stdout=log, stderr=log, env=env, cwd=ROOT
            )

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self._forget()

    def pause(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        self.stopped = True

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)
        self.stopped = False

    def end(self, within_s: float = 15) -> int | None:
        """SIGTERM; the exit code."""
        if self.process is None:
            return None
        self.process.terminate()
        return self.process.wait(within_s)

    def _forget(self) -> None:
        self.process, self.stopped, self._start_at = None, False, time.monotonic() + RESTART_AFTER_S


@dataclass
class CountedWorker(Actor):
    """Each of its lives counts its image-steps in a file of its own."""

    counters: list[Path] = field(default_factory=list)

    def start(self) -> None:
        self.counters.append(self.folder / f"{self.name}.{len(self.counters)}.count")
        make_counter(self.counters[-1])
        self.command = [sys.executable, "-m", "tests.chaos.counted_worker", str(self.counters[-1])]
        super().start()

    @property
    def at_work(self) -> bool:
        """It has computed something in this life."""
        return self.alive and computed(self.counters[-1]) > 0

    @property
    def image_steps(self) -> int:
        """Of all its lives; the steps that kills interrupted count as computed."""
        current = len(self.counters) - self.alive
        return sum(map(computed, self.counters)) + sum(map(in_hand, self.counters[:current]))


@dataclass(frozen=True)
class Fleet:
    store: Actor
    apis: Sequence[Actor]
    workers: Sequence[CountedWorker]

    @property
    def all(self) -> list[Actor]:
        return [self.store, *self.apis, *self.workers]

    @property
    def image_steps(self) -> int:
        return sum(worker.image_steps for worker in self.workers)

    def tend_until(
        self, done: Callable[[], bool], within_s: float, turn: Callable[[], None] = lambda: None
    ) -> None:
        """Keep all alive. Raises TimeoutError."""
        deadline = time.monotonic() + within_s
        while not done():
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"not done after {within_s:g} s; the logs are in {self.store.folder}"
                )
            for actor in self.all:
                actor.tend()
            turn()
            time.sleep(0.02)

    def end(self) -> None:
        for actor in reversed(self.all):
            if actor.stopped:
                actor.resume()
            actor.end()
