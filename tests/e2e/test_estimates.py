"""`queue.eta_s` against what then happens, with workers in processes of their own."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from tests.e2e.conftest import Service
from tests.support.processes import eventually

# The last one is what is asked about: what comes later nobody can foresee.
MIXES = {
    "one image beside bulk work": [(128, 300, "bulk"), (1, 200, "interactive")],
    "interactive after interactive": [(64, 300, "interactive"), (8, 200, "interactive"), (64, 250, "interactive")],
    "bulk after all else": [(64, 200, "interactive"), (130, 150, "bulk"), (64, 100, "bulk")],
}


def seconds(job: dict[str, Any]) -> float:
    ended, posted = (datetime.fromisoformat(job[name]) for name in ("finished_at", "created_at"))
    return (ended - posted).total_seconds()


def ratio(service: Service, mix: list[tuple[int, int, str]]) -> float:
    """What the last job was told, of what it then took."""
    jobs = [service.post(count=count, steps=steps, priority=priority) for count, steps, priority in mix]
    told = jobs[-1]["queue"]["eta_s"]
    took = seconds([service.finished(job["id"], within_s=120) for job in jobs][-1])
    return told / took


def rates(service: Service) -> list[float]:
    return [worker["image_steps_per_s"] for worker in service.http.get("/readyz").json()["workers"]]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mix", MIXES)
def test_a_job_takes_half_to_twice_as_long_as_it_was_told(service: Service, mix: str):
    before = rates(service)
    for _ in range(2):
        service.finished(service.post(count=128, steps=300)["id"], within_s=120)
    eventually(lambda: not set(rates(service)) & set(before), 10, "the workers have said how fast they found themselves")
    ratios = []
    for _ in range(3):  # something else on the machine may disturb one
        ratios.append(ratio(service, MIXES[mix]))
        if 0.5 <= ratios[-1] <= 2:
            return
    pytest.fail(f"three times told a time that was not kept, by factors of {ratios}")
