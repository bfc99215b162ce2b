"""The estimate `queue.eta_s` against what then happens, with workers in processes of their own.

`make test` runs nothing else at the same time.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from tests.e2e.conftest import Service
from tests.support.processes import eventually
from worker.jobs.keys import WORKERS

# Images, steps and priority of jobs. The last one's estimate is checked, because nobody can foresee
# what comes later. In the first mix there is enough bulk work for both workers.
MIXES = {
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


def seconds(job: dict[str, Any]) -> float:
    """Return how long the job took, from its post to its end."""
    posted = datetime.fromisoformat(job["created_at"])
    return (datetime.fromisoformat(job["finished_at"]) - posted).total_seconds()


def rates(service: Service) -> list[float]:
    """Return the image-steps a second that the workers report."""
    return [worker["image_steps_per_s"] for worker in service.http.get("/readyz").json()["workers"]]


def new_rates(service: Service) -> list[float]:
    """Wait until every worker has reported again, and return the rates."""
    before = set(service.redis.hvals(WORKERS))

    def all_reported() -> bool:
        return not before & set(service.redis.hvals(WORKERS))

    eventually(all_reported, 120, "the workers have reported their rates")
    return rates(service)


def ratio(service: Service, mix: list[tuple[int, int, str]]) -> float:
    """Return the last job's estimate over the time that it took.

    It is corrected for how much faster or slower the workers were than they had reported.
    """
    before = rates(service)
    jobs = [
        service.post(count=count, steps=steps, priority=priority) for count, steps, priority in mix
    ]
    took_s = seconds([service.finished(job["id"], within_s=200) for job in jobs][-1])
    return jobs[-1]["queue"]["eta_s"] / took_s * sum(before) / sum(new_rates(service))


@pytest.fixture(scope="module")
def measured(service: Service) -> Service:
    """A service whose workers have measured and reported their rates."""
    service.finished(service.post(count=128, steps=150)["id"], within_s=200)
    new_rates(service)
    return service


@pytest.mark.slow
@pytest.mark.redis
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mix", MIXES)
def test_a_job_takes_half_to_twice_as_long_as_estimated(measured: Service, mix: str) -> None:
    ratios: list[float] = []
    # Something else on the machine may disturb one try.
    for _ in range(3):
        ratios.append(ratio(measured, MIXES[mix]))
        if 0.5 <= ratios[-1] <= 2:
            return
    pytest.fail(f"three estimates were off by factors of {ratios}")
