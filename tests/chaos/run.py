"""A storm from beginning to end: the fleet, the jobs in peace and in the storm, the verdict."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

from tests.chaos.actors import ROOT
from tests.chaos.clients import ClientOutcome
from tests.chaos.jobs import JobSize, draw_jobs, image_steps
from tests.chaos.leftovers import keys_of_jobs, leftovers
from tests.chaos.stage import ChaosStage, on_stage
from tests.chaos.storm import Storm
from tests.chaos.verdict import Verdict
from worker.jobs.shard_queue import LEASE_S

OWNERS = ("anna", "ben")
# Times that steps of each worker take as long as they would.
SLOWNESS = (1.0, 2.0, 3.0)
# The last leases of killed workers lapse within this time, and so do the names of dead workers.
_SETTLES_WITHIN_S = 3 * LEASE_S


def storm(
    seed: int,
    size: JobSize,
    patience_s: float,
    folder: Path,
    say: Callable[[str], None],
    before: Path = ROOT,
) -> Verdict:
    """Run the same jobs in peace and in a storm, and return the verdict.

    Args:
        seed: Seed of the jobs and of what happens when.
        size: Amount of work.
        patience_s: Seconds that either run may take.
        folder: Folder of the logs. Its path must be short, because a socket lies in it.
        say: Called with a line about whatever happens.
        before: A checkout whose code the workers and one API begin with, and are upgraded from.

    Raises:
        TimeoutError: Jobs did not end within `patience_s`.
    """
    dice = Random(seed)
    bodies = draw_jobs(dice, size)
    work = f"{len(bodies)} jobs of {image_steps(bodies)} image-steps"
    say(f"seed {seed}: {work}; the logs are in {folder}")
    models = sorted({body["model"] for body in bodies})
    with on_stage(
        folder, models, patience_s, say, owners=OWNERS, slowness=SLOWNESS, replicated=True
    ) as stage:
        for actor in (*stage.fleet.workers, stage.fleet.apis[1]):
            actor.home = before
        undisturbed, peace_s = _in_peace(stage, bodies)
        peaceful = stage.fleet.image_steps
        say(f"undisturbed they took {peace_s:.0f} s")
        stormy, storm_s, weather = _in_storm(stage, bodies, dice)
        return Verdict(
            seed=seed,
            undisturbed=undisturbed,
            stormy=stormy,
            happened=weather.happened,
            setbacks=stage.clients.setbacks,
            needed=image_steps(bodies),
            peaceful=peaceful,
            computed=stage.fleet.image_steps - peaceful,
            peace_s=peace_s,
            storm_s=storm_s,
            left=_left(stage, stormy),
            deaths=[f"{actor.name} {actor.deaths}" for actor in stage.fleet.all if actor.deaths],
        )


def _in_peace(
    stage: ChaosStage, bodies: Sequence[dict[str, Any]]
) -> tuple[list[ClientOutcome], float]:
    began = time.monotonic()
    drawn = stage.clients.draw(bodies)
    stage.tend_until(lambda: _share_ended(drawn) == 1)
    outcomes = [future.result() for future in drawn]
    _delete(stage, outcomes)
    return outcomes, time.monotonic() - began


def _in_storm(
    stage: ChaosStage, bodies: Sequence[dict[str, Any]], dice: Random
) -> tuple[list[ClientOutcome], float, Storm]:
    began = time.monotonic()
    drawn = stage.clients.draw(bodies)
    weather = Storm(stage, dice, lambda: _share_ended(drawn))
    stage.tend_until(lambda: _share_ended(drawn) == 1 and weather.over(), weather.run_once)
    return [future.result() for future in drawn], time.monotonic() - began, weather


def _share_ended(drawn: Sequence[Future[ClientOutcome]]) -> float:
    return sum(future.done() for future in drawn) / len(drawn)


def _left(stage: ChaosStage, outcomes: Sequence[ClientOutcome]) -> list[str]:
    """Return what is left in the store once all has settled, and once the jobs are deleted."""
    with suppress(TimeoutError):
        stage.fleet.tend_until(lambda: not leftovers(stage.redis), _SETTLES_WITHIN_S)
    left = leftovers(stage.redis)
    _delete(stage, outcomes)
    return left + keys_of_jobs(stage.redis, [outcome.job["id"] for outcome in outcomes])


def _delete(stage: ChaosStage, outcomes: Sequence[ClientOutcome]) -> None:
    for outcome in outcomes:
        stage.clients.call("DELETE", outcome.job["links"]["self"], outcome.owner)
