"""`queue.eta_s` against what then happens, with workers in processes of their own.

`make test` runs nothing at the same time.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from tests.e2e.conftest import Service
from tests.support.processes import eventually
from worker.jobs.keys import WORKERS

# The estimate of the last job of each is tested: nobody can foresee what comes later.
MIXES = {
    # Enough bulk work for both workers.
    "one image beside bulk work": [(256, 70, "bulk"), (1, 140, "interactive")],
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


def seconds_of(job: dict[str, Any]) -> float:
    """Return the seconds from the job's post to its end."""
    ended = datetime.fromisoformat(job["finished_at"])
    return (ended - datetime.fromisoformat(job["created_at"])).total_seconds()


def rates(service: Service) -> list[float]:
    return [worker["image_steps_per_s"] for worker in service.http.get("/readyz").json()["workers"]]


def new_rates(service: Service) -> list[float]:
    """Wait until every worker has published its rate again, and return the rates."""
    before = set(service.redis.hvals(WORKERS))

    def all_are_new() -> bool:
        return not before & set(service.redis.hvals(WORKERS))

    eventually(all_are_new, 20, "the workers have published their rates")
    return rates(service)


def ratio(service: Service, mix: list[tuple[int, int, str]]) -> float:
    """Return the last job's estimate, as a part of what the job then took.

    It is corrected for workers that were faster or slower then than they had said before.
    """
    before = rates(service)
    jobs = [
        service.post(count=count, steps=steps, priority=priority) for count, steps, priority in mix
    ]
    took_s = seconds_of([service.finished(job["id"], within_s=120) for job in jobs][-1])
    return jobs[-1]["queue"]["eta_s"] / took_s * sum(before) / sum(new_rates(service))


@pytest.fixture(scope="module")
def measured(service: Service) -> Service:
    """A service whose workers have measured and published how fast they are."""
    service.finished(service.post(count=128, steps=150)["id"], within_s=120)
    new_rates(service)
    return service


@pytest.mark.slow
@pytest.mark.redis
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mix", MIXES)
def test_a_job_takes_half_to_twice_as_long_as_was_estimated(measured: Service, mix: str):
    ratios = []
    # Something else on the machine may disturb one of three.
    for _ in range(3):
        ratios.append(ratio(measured, MIXES[mix]))
        if 0.5 <= ratios[-1] <= 2:
            return
    pytest.fail(f"three estimates were wrong, by factors of {ratios}")
