"""One storm from beginning to end: the fleet, the same jobs in peace and in the storm, the verdict."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from redis import Redis

from cli import redis_server
from tests.chaos.actors import Actor, CountedWorker, Fleet
from tests.chaos.clients import Clients, Outcome
from tests.chaos.jobs import Size, draw_jobs, image_steps
from tests.chaos.leftovers import leftovers, of_jobs
from tests.chaos.storm import Storm
from tests.chaos.verdict import Verdict
from tests.support.folders import write_model
from worker.queue import LEASE_S

_WORKERS, _APIS = 3, 2
_SETTLES_WITHIN_S = 3 * LEASE_S  # the leases of those that were killed last lapse, and the names of dead workers


@dataclass(frozen=True)
class Stage:
    """Where a storm takes place, and who tells of it."""

    fleet: Fleet
    clients: Clients
    redis: Redis
    say: Callable[[str], None]
    patience_s: float


def storm(seed: int, size: Size, patience_s: float, folder: Path, say: Callable[[str], None]) -> Verdict:
    """Raises TimeoutError where jobs do not end within `patience_s`. `folder`'s path must be short: a socket lies in it."""
    dice = Random(seed)
    bodies = draw_jobs(dice, size)
    say(f"seed {seed}: {len(bodies)} jobs of {image_steps(bodies)} image-steps; the logs are in {folder}")
    with _stage(folder, sorted({body["model"] for body in bodies}), say, patience_s) as stage:
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


def _in_peace(stage: Stage, bodies: Sequence[dict[str, Any]]) -> tuple[list[Outcome], float]:
    began = time.monotonic()
    drawn = stage.clients.draw(bodies)
    stage.fleet.tend_until(lambda: _share_ended(drawn) == 1, stage.patience_s)
    outcomes = [future.result() for future in drawn]
    _delete(stage, outcomes)
    return outcomes, time.monotonic() - began


def _in_storm(stage: Stage, bodies: Sequence[dict[str, Any]], dice: Random) -> tuple[list[Outcome], float, Storm]:
    began = time.monotonic()
    drawn = stage.clients.draw(bodies)
    weather = Storm(stage.fleet, dice, lambda: _share_ended(drawn), stage.say)
    stage.fleet.tend_until(lambda: _share_ended(drawn) == 1 and weather.over(), stage.patience_s, weather.turn)
    return [future.result() for future in drawn], time.monotonic() - began, weather


def _share_ended(drawn: Sequence[Future[Outcome]]) -> float:
    return sum(future.done() for future in drawn) / len(drawn)


def _left(stage: Stage, outcomes: Sequence[Outcome]) -> list[str]:
    """In the store: once all has settled, and once the jobs have been deleted."""
    with suppress(TimeoutError):
        stage.fleet.tend_until(lambda: not leftovers(stage.redis), _SETTLES_WITHIN_S)
    left = leftovers(stage.redis)
    _delete(stage, outcomes)
    return left + of_jobs(stage.redis, [outcome.job["id"] for outcome in outcomes])


def _delete(stage: Stage, outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        stage.clients.call("DELETE", outcome.job["links"]["self"])


@contextmanager
def _stage(folder: Path, models: Iterable[str], say: Callable[[str], None], patience_s: float) -> Iterator[Stage]:
    socket_path = folder / "valkey.sock"
    ports = [_free_port() for _ in range(_APIS)]
    fleet = _fleet(folder, models, socket_path, ports)
    clients = Clients([f"http://127.0.0.1:{port}" for port in ports])
    with Redis(unix_socket_path=str(socket_path)) as redis:
        try:
            yield Stage(fleet, clients, redis, say, patience_s)
        finally:
            clients.close()
            fleet.end()


def _fleet(folder: Path, models: Iterable[str], socket_path: Path, ports: Sequence[int]) -> Fleet:
    """As `ddpm up` runs them, but for two APIs: the same server with the same settings."""
    for name in ("valkey", "models"):
        (folder / name).mkdir()
    write_model(folder / "models", "tiny")
    env = {
        "DDPM_REDIS_URL": redis_server.socket_url(socket_path),
        "DDPM_MODELS_DIR": str(folder / "models"),
        "DDPM_DEVICE": "cpu",
        "DDPM_CACHE_DIR": str(folder / "cache"),
        "DDPM_MODELS": ",".join(models),
    }
    store = redis_server.valkey(folder / "valkey", socket_path, lock_fd=-1).command
    api = [sys.executable, "-m", "cli", "api", "--port"]
    return Fleet(
        Actor("valkey", store, {}, folder),
        [Actor(f"api-{number}", [*api, str(port)], env, folder) for number, port in enumerate(ports)],
        [CountedWorker(f"worker-{number}", [], env, folder) for number in range(_WORKERS)],
    )


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
