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
    """A process that `tend` starts, and starts again when it has died.

    Call it from the main thread only, as cli/serve/child.py explains.

    Attributes:
        name: Name in reports, and of its log.
        command: Program and arguments.
        env: Its environment, next to ours without DDPM_ variables.
        folder: Folder of its log.
        home: The checkout whose code it runs.
        process: None while it is not to run.
        stopped: Whether it was stopped by SIGSTOP.
        deaths: Exit codes of the times that it ended by itself.
    """

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    folder: Path
    home: Path = ROOT
    process: subprocess.Popen[bytes] | None = None
    stopped: bool = False
    deaths: list[int] = field(default_factory=list)
    _start_at: float = 0.0

    @property
    def alive(self) -> bool:
        """Return whether the process runs."""
        return self.process is not None and self.process.poll() is None

    @property
    def log(self) -> Path:
        """Return the file that its output goes to."""
        return self.folder / f"{self.name}.log"

    def tend(self) -> None:
        """Notice a death, and start the process if it is time to.

        Raises:
            RuntimeError: It dies by itself again and again.
        """
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
        """Start the process, which dies with this one."""
        command = [sys.executable, "-P", die_with_parent.__file__]
        command += [str(int(signal.SIGKILL)), str(os.getpid()), *self.command]
        env = {name: value for name, value in os.environ.items() if not name.startswith("DDPM_")}
        env |= self.env
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=env, cwd=self.home)

    def kill(self, away_s: float = RESTART_AFTER_S) -> None:
        """Kill the process. It is started again after `away_s` seconds."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self._forget(away_s)

    def pause(self) -> None:
        """Stop the process as it is, by SIGSTOP."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        self.stopped = True

    def resume(self) -> None:
        """Let a stopped process go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)
        self.stopped = False

    def end(self, within_s: float = 15) -> int | None:
        """Send SIGTERM, and return the exit code; None if it does not run.

        Raises:
            subprocess.TimeoutExpired: It has not ended within `within_s` seconds.
        """
        if self.process is None:
            return None
        self.process.terminate()
        return self.process.wait(within_s)

    def move(self, home: Path) -> None:
        """End the process in good order; it is started again with the code of another checkout."""
        self.end()
        self.home = home
        self._forget()

    def _forget(self, away_s: float = RESTART_AFTER_S) -> None:
        self.process = None
        self.stopped = False
        self._start_at = time.monotonic() + away_s


@dataclass
class CountedWorker(Actor):
    """A worker that counts image-steps, in a file for each of its lives.

    Attributes:
        counters: The files.
        slowness: Times that a step takes as long as it would.
        short_leases: Whether its leases take a third of the time.
    """

    slowness: float = 1.0
    short_leases: bool = False
    counters: list[Path] = field(default_factory=list)

    def start(self) -> None:
        """Start another life, with a counter of its own."""
        self.counters.append(self.folder / f"{self.name}.{len(self.counters)}.count")
        make_counter(self.counters[-1])
        arguments = [str(self.counters[-1]), str(self.slowness), *["short"] * self.short_leases]
        self.command = [sys.executable, "-m", "tests.chaos.counted_worker", *arguments]
        super().start()

    @property
    def at_work(self) -> bool:
        """Return whether it has computed something in this life."""
        return self.alive and computed(self.counters[-1]) > 0

    @property
    def image_steps(self) -> int:
        """Return the image-steps of all its lives; those that a kill interrupted count too."""
        current = len(self.counters) - self.alive
        return sum(map(computed, self.counters)) + sum(map(in_hand, self.counters[:current]))


@dataclass
class Fleet:
    """The processes of the service.

    Attributes:
        store: The job store; None if somebody else runs it.
        apis: The APIs.
        workers: The workers.
        replica: The job store's replica, if it has one.
    """

    store: Actor | None
    apis: Sequence[Actor]
    workers: Sequence[CountedWorker]
    replica: Actor | None = None

    @property
    def all(self) -> list[Actor]:
        """Return all processes, the lowest first."""
        stores = [store for store in (self.store, self.replica) if store]
        return [*stores, *self.apis, *self.workers]

    @property
    def image_steps(self) -> int:
        """Return the image-steps of all workers."""
        return sum(worker.image_steps for worker in self.workers)

    def tend_until(
        self,
        done: Callable[[], bool],
        within_s: float,
        run_once: Callable[[], None] = lambda: None,
    ) -> None:
        """Keep all alive until `done`, and call `run_once` many times a second.

        Raises:
            TimeoutError: It is not done within `within_s` seconds.
        """
        deadline = time.monotonic() + within_s
        while not done():
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"not done after {within_s:g} s; the logs are in {self.apis[0].folder}"
                )
            for actor in self.all:
                actor.tend()
            run_once()
            time.sleep(0.02)

    def end(self) -> None:
        """End all processes, the lowest last."""
        for actor in reversed(self.all):
            if actor.stopped:
                actor.resume()
            actor.end()
