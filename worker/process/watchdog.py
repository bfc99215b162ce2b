"""A watchdog for the loop: a step or a stop that never ends ends the process."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable

from worker.logs import event
from worker.process.heartbeat import HEARTBEAT_EVERY_S
from worker.process.shard_leases import ShardLeases

log = logging.getLogger(__name__)
CHECK_EVERY_S = HEARTBEAT_EVERY_S
# A turn of the loop may take so long whatever its steps do: kernels are compiled, graphs recorded.
HUNG_S = 120.0
# A stop may take so long: chains are saved, images are sent, shards are given back.
STOP_S = 10.0
# Both may take so many of the worker's longest steps in addition.
HUNG_STEPS = 10
# A model that was added may take so long to be loaded and calibrated, during which nothing steps.
LOAD_S = 1800.0


class Watchdog:
    """Ends the process when the loop makes no turn for long.

    That is HUNG_S, STOP_S if the loop is to stop, or LOAD_S if it loads a model; and HUNG_STEPS
    steps, since a step of a large network on a CPU takes seconds. A device that does not answer
    would otherwise hold the worker's shards for ever, because the heartbeat goes on. The watchdog
    counts its checks and not seconds, because a process that was stopped and continued knows
    nothing of the seconds in between.
    """

    def __init__(
        self,
        shards: ShardLeases,
        end_process: Callable[[int], object] = os._exit,
        step_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """Make a watchdog that has seen no turn yet.

        Args:
            shards: what the worker holds; it is abandoned when the loop hangs.
            end_process: is called with the exit status. Nothing gentler than `os._exit` ends a
                thread that waits for a device.
            step_s: tells how many seconds the longest step of the loop takes now.
        """
        self._shards = shards
        self._end_process = end_process
        self._step_s = step_s
        self._turns = 0
        self._turns_at_last_check = 0
        self._checks_without_turn = 0
        self._stops = False
        self._loads = False

    @property
    def allowed_s(self) -> float:
        """Seconds that the loop may go without a turn."""
        turn_s = LOAD_S if self._loads else HUNG_S
        return (STOP_S if self._stops else turn_s) + HUNG_STEPS * self._step_s()

    def note_turn(self) -> None:
        """Note that the loop begins another turn. Only the loop's thread calls this."""
        self._loads = False
        self._turns += 1

    def note_load(self) -> None:
        """Note that this turn loads a model. Only the loop's thread calls this."""
        self.note_turn()
        self._loads = True

    def note_stop(self) -> None:
        """Note that the loop has made its last turn, and closes. Only its thread calls this."""
        self._stops = True
        self.note_turn()

    def run_once(self) -> None:
        """Check the loop once; end the process if it hangs.

        Raises:
            RedisError: the shards could not be abandoned. The process ends all the same.
        """
        turns = self._turns
        if turns == self._turns_at_last_check:
            self._checks_without_turn += 1
        else:
            self._checks_without_turn = 0
        self._turns_at_last_check = turns
        if self._checks_without_turn >= math.ceil(self.allowed_s / CHECK_EVERY_S):
            self._end()

    def _end(self) -> None:
        what = "the worker has not stopped" if self._stops else "no step has ended"
        reason = f"{what} for {self.allowed_s:.0f} s"
        log.critical("worker %s ends: %s", self._shards.name, reason, extra=event("worker.hung"))
        try:
            self._shards.abandon(None, reason)
        finally:
            self._end_process(1)
