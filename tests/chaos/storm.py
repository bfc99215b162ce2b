"""The storm: what happens to the processes, and when.

Workers die all the time, the others as the work goes on.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random

from redis import Redis
from redis.exceptions import RedisError

from tests.chaos.actors import ROOT, Actor, CountedWorker
from tests.chaos.stage import ChaosStage
from tests.support.processes import eventually
from worker.jobs.shard_queue import LEASE_S

PAUSE_S = LEASE_S + 4
_BETWEEN_KILLS_S = (3.0, 6.0)
_HAND_OVER_MS = 2000
_REDIRECTED_AFTER_S = 1.0

# Share of the jobs that have ended, and what happens then. It goes by work and not by the clock, so
# that it happens in the middle of work on any machine.
_PLAN = (
    (0.1, "pause"),
    (0.2, "kill store"),
    (0.3, "kill api"),
    (0.35, "upgrade worker"),
    (0.45, "upgrade api"),
    (0.5, "kill store"),
    (0.55, "upgrade worker"),
    (0.6, "kill api"),
    (0.65, "upgrade worker"),
    (0.75, "fail over"),
)
PLANNED = Counter(strike for _, strike in _PLAN)


class Storm:
    """A storm over a fleet, whose `run_once` is to be called many times a second.

    Attributes:
        happened: What has happened, and how often.
    """

    def __init__(
        self,
        stage: ChaosStage,
        random: Random,
        share_ended: Callable[[], float],
    ) -> None:
        """Plan the storm.

        Args:
            stage: The processes, and who hears of whatever happens.
            random: Decides whom it hits, and when workers die.
            share_ended: Returns the share of the jobs that have ended.
        """
        self._stage = stage
        self._fleet = stage.fleet
        self._random = random
        self._share_ended = share_ended
        self._say = stage.say
        # Those that were upgraded.
        self._upgraded: set[str] = set()
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
                assert self._fleet.store
                return self._kill(self._fleet.store, strike)
            case "kill api":
                return self._kill(self._random.choice(self._fleet.apis), strike)
            case "upgrade worker":
                return self._upgrade(self._fleet.workers, strike)
            case "upgrade api":
                return self._upgrade(self._fleet.apis[1:], strike)
            case "fail over":
                return self._fail_over()
        return self._pause_any_worker()

    def _kill(self, actor: Actor, strike: str) -> bool:
        if not actor.alive:
            return False
        actor.kill()
        self._note(strike, actor.name)
        return True

    def _upgrade(self, actors: Sequence[Actor], strike: str) -> bool:
        """End one of the processes, and start it with the code of this checkout."""
        for actor in actors:
            if actor.name not in self._upgraded and actor.alive and not actor.stopped:
                actor.move(ROOT)
                self._upgraded.add(actor.name)
                self._note(strike, actor.name)
                return True
        return False

    def _fail_over(self) -> bool:
        """Let the replica take the store's place, which is killed.

        The server hands over what it has, so that nothing is lost. Clients stay connected to the
        old server, which refuses their writes, until their one address leads to the new one.
        """
        store, replica, address = self._fleet.store, self._fleet.replica, self._stage.address
        assert store
        assert replica
        assert address
        if not (store.alive and replica.alive):
            return False
        with Redis(port=_port(store)) as old, Redis(port=_port(replica)) as new:
            try:
                old.execute_command("FAILOVER", "TIMEOUT", _HAND_OVER_MS)
                eventually(lambda: new.role()[0] == b"master", 2 * _HAND_OVER_MS / 1000, "it leads")
            # The replica has not caught up yet with a server that was killed.
            except (RedisError, AssertionError):
                return False
        time.sleep(_REDIRECTED_AFTER_S)
        address.turn_to(f"redis://127.0.0.1:{_port(replica)}")
        store.kill()
        self._fleet.store, self._fleet.replica = replica, None
        self._note("fail over", replica.name)
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


def _port(store: Actor) -> int:
    """Return the port of a store's command line; the last one counts."""
    command = list(store.command)
    return int(command[len(command) - command[::-1].index("--port")])
