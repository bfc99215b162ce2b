"""What happens to the processes, and when: workers die all the time, the rest as the work goes on."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from random import Random

from tests.chaos.actors import Actor, CountedWorker, Fleet
from worker.jobs.shard_queue import LEASE_S

PAUSE_S = LEASE_S + 4
_BETWEEN_KILLS_S = (3.0, 6.0)

# Share of the jobs that have ended -> what happens then. By work and not by the clock: it is to happen on any machine, amid work.
_PLAN = (
    (0.1, "pause"),
    (0.2, "kill store"),
    (0.3, "kill api"),
    (0.5, "kill store"),
    (0.6, "kill api"),
)
PLANNED = Counter(what for _, what in _PLAN)


class Storm:
    """`turn` is called many times a second. What has happened is counted in `happened`, and told to `say`."""

    def __init__(
        self,
        fleet: Fleet,
        random: Random,
        share_ended: Callable[[], float],
        say: Callable[[str], None],
    ) -> None:
        self._fleet, self._random, self._share_ended, self._say = fleet, random, share_ended, say
        self.happened: Counter[str] = Counter()
        self._plan = list(_PLAN)
        self._next_kill = time.monotonic() + random.uniform(*_BETWEEN_KILLS_S)
        self._paused: tuple[CountedWorker, float] | None = None

    def run_once(self) -> None:
        now = time.monotonic()
        if (
            self._plan
            and self._share_ended() >= self._plan[0][0]
            and self._happens(self._plan[0][1])
        ):
            self._plan.pop(0)
        if now >= self._next_kill:
            self._kill_any_worker()
            self._next_kill = now + self._random.uniform(*_BETWEEN_KILLS_S)
        if self._paused and now >= self._paused[1]:
            self._paused[0].resume()
            self._say(f"{self._paused[0].name} goes on")
            self._paused = None

    def over(self) -> bool:
        return not self._plan and self._paused is None

    def _happens(self, what: str) -> bool:
        """False: not yet, since nobody is there whom it could happen to."""
        match what:
            case "kill store":
                return self._kill(self._fleet.store, what)
            case "kill api":
                return self._kill(self._random.choice(self._fleet.apis), what)
        return self._pause_any_worker()

    def _kill(self, actor: Actor, what: str) -> bool:
        if not actor.alive:
            return False
        actor.kill()
        self._note(what, actor.name)
        return True

    def _kill_any_worker(self) -> None:
        """Spares one that has computed nothing yet: on a slow machine none would live long enough to do any work."""
        worker = self._random.choice(
            [worker for worker in self._fleet.workers if not worker.stopped]
        )
        if worker.at_work:
            self._kill(worker, "kill worker")

    def _pause_any_worker(self) -> bool:
        """Its leases lapse and others take its shards, which it does not know when it goes on."""
        at_work = [worker for worker in self._fleet.workers if worker.at_work]
        if not at_work:
            return False
        worker = self._random.choice(at_work)
        worker.pause()
        self._paused = worker, time.monotonic() + PAUSE_S
        self._note("pause", worker.name)
        return True

    def _note(self, what: str, name: str) -> None:
        self.happened[what] += 1
        self._say(f"{what}: {name}")
