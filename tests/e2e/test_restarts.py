"""Jobs and clients of a service whose processes are killed.

All are killed at once, as when a machine loses its power, or an API or job store is killed while
clients poll.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.exceptions import ConnectionError

from tests.chaos.actors import Actor
from tests.chaos.clients import ClientOutcome
from tests.chaos.stage import ChaosStage, on_stage

pytestmark = [
    pytest.mark.redis,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux", reason="processes die with this one on Linux only"),
]
BODIES = [
    {"model": "tiny", "count": count, "seed": seed, "steps": 100, "priority": priority}
    for seed, (count, priority) in enumerate([(1, "bulk"), (40, "interactive"), (130, "bulk")])
]


@pytest.fixture
def stage() -> Iterator[ChaosStage]:
    with (
        tempfile.TemporaryDirectory(prefix="restart-") as folder,
        on_stage(Path(folder), ["tiny"], 200, workers=2, apis=1) as stage,
    ):
        for worker in stage.fleet.workers:
            worker.short_leases = True
        yield stage


def draw(stage: ChaosStage, run_once: Callable[[], None] = lambda: None) -> list[ClientOutcome]:
    """Post the jobs, wait until they have ended, and return their outcomes."""
    futures = stage.clients.draw(BODIES)
    stage.tend_until(lambda: all(future.done() for future in futures), run_once)
    return [future.result() for future in futures]


def chains_are_saved(stage: ChaosStage) -> bool:
    try:
        return any(stage.redis.scan_iter("ddpm:job:*:chains"))
    # The server has not started yet.
    except ConnectionError:
        return False


def test_every_job_resumes_where_it_was_saved_after_all_processes_were_killed(
    stage: ChaosStage,
) -> None:
    undisturbed = draw(stage)
    killed: list[Actor] = []

    def power_cut() -> None:
        if not killed and chains_are_saved(stage):
            killed.extend(stage.fleet.all)
            for actor in killed:
                actor.kill()

    again = draw(stage, power_cut)
    assert killed
    assert [outcome.job["state"] for outcome in again] == ["finished"] * 3
    assert [outcome.pngs for outcome in again] == [outcome.pngs for outcome in undisturbed]
    assert any("resume" in worker.log.read_text() for worker in stage.fleet.workers)


class StatusPoller(threading.Thread):
    """A client that reads a job again and again.

    Attributes:
        seen: Status and fraction of each answer; status 0 where there was none.
        ended: Set it to end the polling.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.seen: list[tuple[int, float]] = []
        self.ended = threading.Event()

    def run(self) -> None:
        """Poll ten times a second."""
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


def test_pollers_see_progress_never_go_back_while_api_and_store_are_killed(
    stage: ChaosStage,
) -> None:
    stage.clients.draw([{"model": "tiny", "count": 130, "steps": 1000}])
    stage.tend_until(lambda: chains_are_saved(stage))
    (chains,) = stage.redis.scan_iter("ddpm:job:*:chains")
    pollers = [
        StatusPoller(f"{stage.clients.urls[0]}/v1/jobs/{chains.decode().split(':')[2]}")
        for _ in range(20)
    ]
    for poller in pollers:
        poller.start()
    for actor in (stage.fleet.apis[0], stage.fleet.store):
        wait_for_answers(stage, pollers)
        actor.kill()
    wait_for_answers(stage, pollers)
    for poller in pollers:
        poller.ended.set()
        poller.join()
        shown = [fraction for status, fraction in poller.seen if status == 200]
        assert shown == sorted(shown)
        assert shown[-1] > shown[0]
    assert {status for poller in pollers for status, _ in poller.seen} <= {0, 200, 503}


def wait_for_answers(stage: ChaosStage, pollers: list[StatusPoller]) -> None:
    """Wait until each poller has a 200, not counting its next three polls."""
    before = [len(poller.seen) for poller in pollers]

    def all_answered() -> bool:
        pairs = zip(pollers, before, strict=True)
        return all(200 in dict(poller.seen[count + 3 :]) for poller, count in pairs)

    stage.tend_until(all_answered)
