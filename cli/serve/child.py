"""A supervised process: its command, its log lines, its restarts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

from cli.console import say
from cli.serve import die_with_parent
from worker.jobs.backoff import Backoff, Pauses

BACKOFF = Backoff(first_s=0.5, longest_s=10.0)
# Seconds after which a process has lived so steadily that its delays begin anew.
STEADY_S = 30.0


PATIENCE_S = 10.0


@dataclass(slots=True)
class Child:
    """A process that `tend` keeps alive.

    Attributes:
        name: Prefix of its log lines.
        orphaned: Signal that the kernel sends it when the supervisor is killed.
        keep_fds: Descriptors that it inherits.
        patience_s: Seconds that it may take to stop before it is killed.
    """

    name: str
    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    orphaned: signal.Signals = signal.SIGKILL
    keep_fds: tuple[int, ...] = ()
    patience_s: float = PATIENCE_S
    process: subprocess.Popen[str] | None = None
    delays: Pauses = field(default_factory=BACKOFF.pauses)
    _started: float = 0.0
    _start_again: float = 0.0
    _relay: threading.Thread | None = None

    @property
    def alive(self) -> bool:
        """Return whether the process runs."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start the process. Call it from the main thread only.

        The kernel takes the end of the thread that started a child for the end of its parent.
        """
        die_with_us = [
            sys.executable,
            "-P",
            die_with_parent.__file__,
            str(int(self.orphaned)),
            str(os.getpid()),
        ]
        self.process = subprocess.Popen(
            [*die_with_us, *self.command],
            env={**_for_people(), **os.environ, "PYTHONUNBUFFERED": "1", **self.env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # Ctrl-C reaches the supervisor alone, which stops the children in order.
            start_new_session=True,
            pass_fds=self.keep_fds,
        )
        self._started = time.monotonic()
        assert self.process.stdout is not None
        self._relay = threading.Thread(
            target=_relay, args=(self.process.stdout, self.name), daemon=True
        )
        self._relay.start()

    def tend(self, now: float) -> None:
        """Notice a death, say so, and start again when the delay is over."""
        if self.alive:
            return
        if self.process is not None:
            delay_s = self.delay_after(now - self._started)
            lived = f"after {now - self._started:.1f} s"
            say(f"{self.name} {ending(self.process.returncode)} {lived}; restart in {delay_s:g} s")
            self.process = None
            self._start_again = now + delay_s
        elif now >= self._start_again:
            self.start()

    def delay_after(self, lived_s: float) -> float:
        """Return the seconds to wait before the next start, after a life of `lived_s` seconds."""
        if lived_s >= STEADY_S:
            self.delays.reset()
        return self.delays.next_s()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process, if it runs."""
        if self.process is not None and self.alive:
            self.process.send_signal(number)

    def finish(self) -> None:
        """Wait for the end of a child that was sent SIGKILL, and for its last log line."""
        if self.process is not None:
            self.process.wait()
        if self._relay is not None:
            self._relay.join(timeout=1)


def ending(code: int) -> str:
    """Describe how a process with this return code ended."""
    if code >= 0:
        return f"exited with {code}"
    known = -code in list(signal.Signals)
    return f"was killed by {signal.Signals(-code).name if known else f'signal {-code}'}"


def _for_people() -> dict[str, str]:
    """Return settings of a process whose lines somebody reads: it writes to a pipe, to us."""
    return {"DDPM_LOG_FORMAT": "console"} if sys.stdout.isatty() else {}


def _relay(stream: IO[str], name: str) -> None:
    """Read to the end even when nobody reads us: a full pipe would stop the child."""
    with stream:
        for line in stream:
            # JSON says itself whose it is, and stays JSON.
            if line.startswith("{"):
                say(line.rstrip())
                continue
            say(f"{name:<9}| {line.rstrip()}")
