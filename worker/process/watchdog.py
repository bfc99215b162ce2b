"""A watchdog for the loop: a step that never ends ends the process."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

from worker.process.heartbeat import HEARTBEAT_EVERY_S
from worker.process.shard_leases import ShardLeases

log = logging.getLogger(__name__)
CHECK_EVERY_S = HEARTBEAT_EVERY_S
HUNG_CHECKS = 40


class Watchdog:
    """Ends the process when the loop has made no turn for HUNG_CHECKS checks.

    A device that does not answer would otherwise hold the worker's shards for ever, because the
    heartbeat goes on. The watchdog counts its checks and not seconds, because a process that was
    stopped and continued knows nothing of the seconds in between.
    """

    def __init__(
        self, shards: ShardLeases, end_process: Callable[[int], object] = os._exit
    ) -> None:
        """Make a watchdog that has seen no turn yet.

        Args:
            shards: what the worker holds; it is abandoned when the loop hangs.
            end_process: is called with the exit status. Nothing gentler than `os._exit` ends a
                thread that waits for a device.
        """
        self._shards = shards
        self._end_process = end_process
        self._turns = 0
        self._turns_at_last_check = 0
        self._checks_without_turn = 0

    def note_turn(self) -> None:
        """Note that the loop begins another turn. Only the loop's thread calls this."""
        self._turns += 1

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
        if self._checks_without_turn >= HUNG_CHECKS:
            self._end()

    def _end(self) -> None:
        reason = f"no step has ended for {HUNG_CHECKS * CHECK_EVERY_S:.0f} s"
        log.critical("worker %s ends: %s", self._shards.name, reason)
        try:
            self._shards.abandon(None, reason)
        finally:
            self._end_process(1)
