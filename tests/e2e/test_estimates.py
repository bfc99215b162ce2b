"""`queue.eta_s` against what then happens, with workers in processes of their own. `make test` runs nothing beside it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from tests.e2e.conftest import Service
from tests.support.processes import eventually
from worker.jobs.keys import WORKERS

# The last one is what is asked about: what comes later nobody can foresee.
MIXES = {
    "one image beside bulk work": [
        (256, 70, "bulk"),
        (1, 140, "interactive"),
    ],  # enough bulk for both workers
    "interactive after interactive": [
        (64, 105, "interactive"),
        (8, 70, "interactive"),
        (64, 90, "interactive"),
    ],
    "bulk after all else": [(64, 140, "interactive"), (130, 105, "bulk"), (64, 70, "bulk")],
    "bulk after interactive": [
        (64, 70, "interactive"),
        (64, 70, "interactive"),
        (130, 50, "bulk"),
        (64, 35, "bulk"),
    ],
    "small bulk beside bulk": [(640, 42, "bulk"), (16, 70, "bulk")],
}


def seconds(job: dict[str, Any]) -> float:
    ended, posted = (datetime.fromisoformat(job[name]) for name in ("finished_at", "created_at"))
    return (ended - posted).total_seconds()


def rates(service: Service) -> list[float]:
    return [worker["image_steps_per_s"] for worker in service.http.get("/readyz").json()["workers"]]


def new_rates(service: Service) -> list[float]:
    """When every worker has spoken again."""
    said = set(service.redis.hvals(WORKERS))
    eventually(
        lambda: not said & set(service.redis.hvals(WORKERS)),
        20,
        "the workers have said how fast they found themselves",
    )
    return rates(service)


def ratio(service: Service, mix: list[tuple[int, int, str]]) -> float:
    """What the last job was told, of what it then took; had the workers been as fast then as they had said before."""
    before = rates(service)
    jobs = [
        service.post(count=count, steps=steps, priority=priority) for count, steps, priority in mix
    ]
    took = seconds([service.finished(job["id"], within_s=120) for job in jobs][-1])
    return jobs[-1]["queue"]["eta_s"] / took * sum(before) / sum(new_rates(service))


@pytest.fixture(scope="module")
def measured(service: Service) -> Service:
    """Its workers have found out how fast they are, and said so."""
    service.finished(service.post(count=128, steps=150)["id"], within_s=120)
    new_rates(service)
    return service


@pytest.mark.slow
@pytest.mark.redis
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mix", MIXES)
def test_a_job_takes_half_to_twice_as_long_as_it_was_told(measured: Service, mix: str):
    ratios = []
    for _ in range(3):  # something else on the machine may disturb one
        ratios.append(ratio(measured, MIXES[mix]))
        if 0.5 <= ratios[-1] <= 2:
            return
    pytest.fail(f"three times told a time that was not kept, by factors of {ratios}")
