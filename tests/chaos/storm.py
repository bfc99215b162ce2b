"""The storm: what happens to the processes, and when.

Workers die all the time, the others as the work goes on.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from random import Random

from tests.chaos.actors import Actor, CountedWorker, Fleet
from worker.jobs.shard_queue import LEASE_S

PAUSE_S = LEASE_S + 4
_BETWEEN_KILLS_S = (3.0, 6.0)

# Share of the jobs that have ended, and what happens then. It goes by work and not by the clock, so
# that it happens in the middle of work on any machine.
_PLAN = (
    (0.1, "pause"),
    (0.2, "kill store"),
    (0.3, "kill api"),
    (0.5, "kill store"),
    (0.6, "kill api"),
)
PLANNED = Counter(strike for _, strike in _PLAN)


class Storm:
    """A storm over a fleet, whose `run_once` is to be called many times a second.

    Attributes:
        happened: What has happened, and how often.
    """

    def __init__(
        self,
        fleet: Fleet,
        random: Random,
        share_ended: Callable[[], float],
        say: Callable[[str], None],
    ) -> None:
        """Plan the storm.

        Args:
            fleet: The processes.
            random: Decides whom it hits, and when workers die.
            share_ended: Returns the share of the jobs that have ended.
            say: Called with a line about whatever happens.
        """
        self._fleet = fleet
        self._random = random
        self._share_ended = share_ended
        self._say = say
        self.happened: Counter[str] = Counter()
        self._plan = list(_PLAN)
        self._next_kill = time.monotonic() + random.uniform(*_BETWEEN_KILLS_S)
        self._paused: tuple[CountedWorker, float] | None = None

    def run_once(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        if self._plan:
            share, strike = self._plan[0]
            if self._share_ended() >= share and self._strike(strike):
                self._plan.pop(0)
        if now >= self._next_kill:
            self._kill_any_worker()
            self._next_kill = now + self._random.uniform(*_BETWEEN_KILLS_S)
        if self._paused:
            worker, until = self._paused
            if now >= until:
                worker.resume()
                self._say(f"{worker.name} goes on")
                self._paused = None

    def over(self) -> bool:
        """Return whether all that was planned has happened, and no worker is stopped."""
        return not self._plan and self._paused is None

    def _strike(self, strike: str) -> bool:
        """Return whether it happened; if not, there is no process yet that it could happen to."""
        match strike:
            case "kill store":
                return self._kill(self._fleet.store, strike)
            case "kill api":
                return self._kill(self._random.choice(self._fleet.apis), strike)
        return self._pause_any_worker()

    def _kill(self, actor: Actor, strike: str) -> bool:
        if not actor.alive:
            return False
        actor.kill()
        self._note(strike, actor.name)
        return True

    def _kill_any_worker(self) -> None:
        """Kill a worker, unless it has computed nothing yet.

        On a slow machine none would live long enough to do any work.
        """
        awake = [worker for worker in self._fleet.workers if not worker.stopped]
        worker = self._random.choice(awake)
        if worker.at_work:
            self._kill(worker, "kill worker")

    def _pause_any_worker(self) -> bool:
        """Stop a worker for so long that its leases lapse and others take its shards.

        It does not know so when it goes on.
        """
        at_work = [worker for worker in self._fleet.workers if worker.at_work]
        if not at_work:
            return False
        worker = self._random.choice(at_work)
        worker.pause()
        self._paused = (worker, time.monotonic() + PAUSE_S)
        self._note("pause", worker.name)
        return True

    def _note(self, strike: str, name: str) -> None:
        self.happened[strike] += 1
        self._say(f"{strike}: {name}")
