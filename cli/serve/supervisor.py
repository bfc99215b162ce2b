"""Keeps a set of processes alive until it is asked to stop.

It stops them in the reverse order of their start.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FrameType

from cli.console import say
from cli.serve.child import Child

_TICK_S = 0.1
# Exit status after a second Ctrl-C.
KILLED = 130


@dataclass(slots=True)
class Stage:
    """Children that start together, once the stage before is ready."""

    children: Sequence[Child]
    ready: Callable[[], bool] = lambda: True
    was_ready: bool = False

    def tend(self) -> bool:
        """Keep the children alive, and return whether the next stage may start."""
        for child in self.children:
            child.tend(time.monotonic())
        self.was_ready = self.was_ready or self.ready()
        return self.was_ready


@dataclass(slots=True)
class Supervisor:
    """Starts stages in order and keeps their children alive.

    Attributes:
        stages: What to run, the lowest first.
        watch: Called at every tick once all stages have started.
    """

    stages: Sequence[Stage]
    watch: Callable[[], None] = lambda: None
    _requests: int = field(default=0, init=False)

    def run(self) -> int:
        """Run until SIGINT, SIGTERM or a closed terminal, and return the exit status."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asked_to_stay = number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN
            if not asked_to_stay:
                signal.signal(number, self._request_stop)
        try:
            while not self._requests:
                if all(stage.tend() for stage in self.stages):
                    self.watch()
                time.sleep(_TICK_S)
            say("stopping; Ctrl-C again kills")
            return self._stop()
        finally:
            for child in (child for stage in self.stages for child in stage.children):
                child.send(signal.SIGKILL)
                child.finish()

    def _request_stop(self, _number: int, _frame: FrameType | None) -> None:
        self._requests += 1

    def _stop(self) -> int:
        """Stop the last stage first: those above save what they have in what lies below."""
        for stage in reversed(self.stages):
            began = time.monotonic()
            for child in stage.children:
                child.send(signal.SIGTERM)
            while any(child.alive for child in stage.children):
                if self._requests > 1:
                    return KILLED
                _kill_late(stage.children, time.monotonic() - began)
                time.sleep(_TICK_S / 5)
        return 0


def _kill_late(children: Sequence[Child], waited_s: float) -> None:
    for child in children:
        if child.alive and waited_s > child.patience_s:
            say(f"{child.name} did not stop within {child.patience_s:g} s; killed")
            child.send(signal.SIGKILL)
            child.finish()
