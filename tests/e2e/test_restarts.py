"""What clients see of a machine that loses its power, and of an API or a job store that is killed while they poll."""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.chaos.actors import Actor
from tests.chaos.clients import Outcome
from tests.chaos.stage import Stage, on_stage

pytestmark = [
    pytest.mark.redis,
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        sys.platform != "linux", reason="the processes are tethered to this one by the kernel"
    ),
]
BODIES = [
    {"model": "tiny", "count": count, "seed": seed, "steps": 100, "priority": priority}
    for seed, (count, priority) in enumerate([(1, "bulk"), (40, "interactive"), (130, "bulk")])
]


@pytest.fixture
def stage() -> Iterator[Stage]:
    with (
        tempfile.TemporaryDirectory(prefix="restart-") as folder,
        on_stage(Path(folder), ["tiny"], 90, workers=2, apis=1) as stage,
    ):
        yield stage


def drawn(stage: Stage, turn: Callable[[], None] = lambda: None) -> list[Outcome]:
    futures = stage.clients.draw(BODIES)
    stage.tend_until(lambda: all(future.done() for future in futures), turn)
    return [future.result() for future in futures]


def chains_are_saved(stage: Stage) -> bool:
    return stage.fleet.store.alive and any(stage.redis.scan_iter("ddpm:job:*:chains"))


def test_after_all_processes_were_killed_at_once_every_job_goes_on_from_where_it_was_saved(
    stage: Stage,
) -> None:
    undisturbed = drawn(stage)
    killed: list[Actor] = []

    def power_cut() -> None:
        if not killed and chains_are_saved(stage):
            killed.extend(stage.fleet.all)
            for actor in killed:
                actor.kill()

    again = drawn(stage, power_cut)
    assert killed
    assert [outcome.job["state"] for outcome in again] == ["finished"] * 3
    assert [outcome.pngs for outcome in again] == [outcome.pngs for outcome in undisturbed]
    assert any("resume" in worker.log.read_text() for worker in stage.fleet.workers)


class Poller(threading.Thread):
    """Asks for a job again and again, and keeps what it is told."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url, self.seen, self.ended = url, list[tuple[int, float]](), threading.Event()

    def run(self) -> None:
        with httpx.Client(timeout=10) as http:
            while not self.ended.wait(0.1):
                try:
                    answer = http.get(self.url)
                except httpx.TransportError:
                    self.seen.append((0, 0.0))
                    continue
                self.seen.append((answer.status_code, fraction(answer.json())))


def fraction(body: dict[str, Any]) -> float:
    return float(body.get("progress", {}).get("fraction", 0.0))


def test_pollers_see_no_connection_or_503_while_api_and_store_are_killed_and_progress_never_goes_back(
    stage: Stage,
) -> None:
    stage.clients.draw([{"model": "tiny", "count": 130, "steps": 1000}])
    stage.tend_until(lambda: chains_are_saved(stage))
    (chains,) = stage.redis.scan_iter("ddpm:job:*:chains")
    pollers = [
        Poller(f"{stage.clients.urls[0]}/v1/jobs/{chains.decode().split(':')[2]}")
        for _ in range(20)
    ]
    for poller in pollers:
        poller.start()
    for actor in (stage.fleet.apis[0], stage.fleet.store):
        answered_anew(stage, pollers)
        actor.kill()
    answered_anew(stage, pollers)
    for poller in pollers:
        poller.ended.set()
        poller.join()
        shown = [fraction for status, fraction in poller.seen if status == 200]
        assert shown == sorted(shown)
        assert shown[-1] > shown[0]
    assert {status for poller in pollers for status, _ in poller.seen} == {0, 200, 503}


def answered_anew(stage: Stage, pollers: list[Poller]) -> None:
    before = [len(poller.seen) for poller in pollers]
    stage.tend_until(
        lambda: all(200 in dict(p.seen[n + 3 :]) for p, n in zip(pollers, before, strict=True))
    )
