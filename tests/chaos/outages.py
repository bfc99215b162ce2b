"""`python -m tests.chaos.outages [NAME ...]` takes the job store away under load, in real seconds.

Three workers hold a hundred shards or so when something is done to the store, and clients post
more meanwhile. No shard may lose an attempt, no step may be computed twice, and each image must be
the one of an undisturbed run. The exit status is 1 if a promise was not kept.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import httpx

from tests.chaos.clients import ClientOutcome
from tests.chaos.disturbances import DISTURBANCES, Disturbance, NotHere, Store
from tests.chaos.jobs import TINY, image_steps
from tests.chaos.leftovers import leftovers
from tests.chaos.stage import ChaosStage, on_stage
from tests.chaos.verdict import is_same_picture
from worker.jobs.domain import Priority
from worker.jobs.keys import LEASES, open_key

_SLOWNESS = (2.0, 3.0, 4.0)
_PATIENCE_S = 900.0
_SETTLES_WITHIN_S = 60.0
_TAKES_WITHIN_S = 2.0
_SMALL, _LARGE, _LATER = 140, 4, 20


def main() -> int:
    """Run the disturbances that were named, or all, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.outages", description=__doc__)
    every = {disturbance.name: disturbance for disturbance in DISTURBANCES}
    parser.add_argument("names", nargs="*", help=f"which: {', '.join(every)}; all if none")
    parser.add_argument("--seed", type=int, default=0, help="of the jobs")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in every]:
        parser.error(f"there is no outage {unknown[0]!r}; there are {', '.join(every)}")
    began = time.monotonic()

    def say(text: str) -> None:
        sys.stdout.write(f"{time.monotonic() - began:6.1f} s  {text}\n")
        sys.stdout.flush()

    bodies = draw_jobs(Random(options.seed))
    expected = undisturbed(bodies, say)
    faults = []
    for name in options.names or every:
        say(f"--- {name}")
        try:
            faults += [f"{name}: {fault}" for fault in disturb(every[name], bodies, expected, say)]
        except NotHere as reason:
            say(f"SKIPPED  {reason}")
    for fault in faults:
        say(f"FAILED  {fault}")
    return 1 if faults else 0


def draw_jobs(random: Random) -> list[dict[str, Any]]:
    """Return bodies of small jobs, of large ones behind them, and of those that come later."""

    def job(count: int, steps: int) -> dict[str, Any]:
        return {
            # A worker holds some of each model and of each class.
            "priority": random.choice(("interactive", "bulk")),
            "model": random.choice(TINY),
            "count": count,
            "steps": steps,
            "seed": random.randrange(2**53),
        }

    small = [job(1, 300) for _ in range(_SMALL)]
    large = [job(96, 60) for _ in range(_LARGE)]
    return small + large + [job(2, 60) for _ in range(_LATER)]


def undisturbed(
    bodies: Sequence[dict[str, Any]], say: Callable[[str], None]
) -> list[ClientOutcome]:
    """Draw the jobs in peace, and return their outcomes."""
    with (
        tempfile.TemporaryDirectory(prefix="chaos-") as folder,
        on_stage(Path(folder), TINY, _PATIENCE_S, say, clients_at_once=len(bodies)) as stage,
    ):
        stage.tend_until(lambda: _is_ready(stage))
        drawn = stage.clients.draw(bodies)
        stage.tend_until(lambda: all(future.done() for future in drawn))
        say(f"{len(bodies)} jobs of {image_steps(list(bodies))} image-steps are drawn in peace")
        return [future.result() for future in drawn]


def disturb(
    disturbance: Disturbance,
    bodies: Sequence[dict[str, Any]],
    expected: Sequence[ClientOutcome],
    say: Callable[[str], None],
) -> list[str]:
    """Draw the jobs during a disturbance, and return the promises that were not kept.

    Raises:
        NotHere: The disturbance needs a program that is not here.
    """
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        (home := Path(folder) / "server").mkdir()
        with (
            disturbance.store(home) as store,
            on_stage(
                Path(folder),
                TINY,
                _PATIENCE_S,
                say,
                slowness=_SLOWNESS,
                redis_url=store.redis_url,
                store_env=store.env,
                clients_at_once=len(bodies),
            ) as stage,
        ):
            outcomes = _draw(stage, disturbance, store, bodies)
            return _faults(stage, bodies, expected, outcomes)


def _draw(
    stage: ChaosStage, disturbance: Disturbance, store: Store, bodies: Sequence[dict[str, Any]]
) -> list[ClientOutcome]:
    at_once, later = bodies[:-_LATER], bodies[-_LATER:]
    workers = stage.fleet.workers
    stage.tend_until(lambda: _is_ready(stage))
    # So that they hold many at once, they take none before all have been posted.
    for worker in workers:
        worker.pause()
    drawn = stage.clients.draw(at_once)
    stage.tend_until(lambda: _open_jobs(stage) == len(at_once))
    for worker in workers:
        worker.resume()
    stage.tend_until(lambda: all(worker.at_work for worker in workers))
    _until_no_more_is_taken(stage)
    stage.say(f"{_leases(stage)} shards are held by {len(workers)} workers")
    drawn += stage.clients.draw(later)
    disturbance.run(stage, store)
    ended = sum(future.done() for future in drawn)
    stage.say(f"{ended} of {len(drawn)} jobs have ended when it is over")
    stage.tend_until(lambda: all(future.done() for future in drawn))
    return [future.result() for future in drawn]


def _faults(
    stage: ChaosStage,
    bodies: Sequence[dict[str, Any]],
    expected: Sequence[ClientOutcome],
    outcomes: Sequence[ClientOutcome],
) -> list[str]:
    unfinished = [o.job["id"] for o in outcomes if o.job["state"] != "finished"]
    lost = [o.job["id"] for o in outcomes if o.job["attempts"] != 1]
    pairs = zip(expected, outcomes, strict=True)
    differing = sum(
        not is_same_picture(png, after.pngs.get(index))
        for before, after in pairs
        for index, png in before.pngs.items()
    )
    needed, computed = image_steps(list(bodies)), stage.fleet.image_steps
    deaths = [f"{actor.name} {actor.deaths}" for actor in stage.fleet.all if actor.deaths]
    left = _left(stage)
    met = ", ".join(f"{name} {n}" for name, n in sorted(stage.clients.setbacks.items()))
    images = sum(len(outcome.pngs) for outcome in expected)
    stage.say(
        f"{len(outcomes) - len(unfinished)} of {len(outcomes)} jobs finished, "
        f"{len(lost)} lost an attempt, {differing} of {images} images differ, "
        f"{computed - needed} of {needed} image-steps computed twice; "
        f"clients met {met or 'nothing'}"
    )
    promises = [
        (not unfinished, f"jobs that did not finish: {unfinished}"),
        (not lost, f"jobs that lost an attempt: {lost}"),
        (not differing, f"{differing} images differ"),
        (computed == needed, f"{computed} image-steps were computed, not {needed}"),
        (not deaths, f"processes ended by themselves: {deaths}"),
        (not left, f"left in the store: {left}"),
    ]
    return [fault for kept, fault in promises if not kept]


def _left(stage: ChaosStage) -> list[str]:
    until = time.monotonic() + _SETTLES_WITHIN_S
    stage.tend_until(lambda: not leftovers(stage.redis) or time.monotonic() > until)
    return leftovers(stage.redis)


def _until_no_more_is_taken(stage: ChaosStage) -> None:
    most, since = 0, time.monotonic()

    def is_so() -> bool:
        nonlocal most, since
        if (held := _leases(stage)) > most:
            most, since = held, time.monotonic()
        return time.monotonic() > since + _TAKES_WITHIN_S

    stage.tend_until(is_so)


def _is_ready(stage: ChaosStage) -> bool:
    """Tell whether all processes serve."""
    try:
        answers = [httpx.get(f"{url}/readyz", timeout=10) for url in stage.clients.urls]
    except httpx.TransportError:
        return False
    everyone = len(stage.fleet.workers)
    return all(a.is_success and len(a.json()["workers"]) == everyone for a in answers)


def _open_jobs(stage: ChaosStage) -> int:
    return sum(int(stage.redis.zcard(open_key(priority))) for priority in Priority)


def _leases(stage: ChaosStage) -> int:
    return int(stage.redis.zcard(LEASES))


if __name__ == "__main__":
    sys.exit(main())
