"""What a job says of itself when nobody works on it any more."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import Service
from tests.support.processes import eventually


@pytest.mark.slow
def test_with_every_worker_killed_no_job_says_running_after_30_s_and_the_next_worker_finishes_it(
    service: Service,
):
    jobs = [service.post(count=count, steps=500)["id"] for count in (1, 130)]
    eventually(
        lambda: all(service.job(job)["progress"]["fraction"] > 0 for job in jobs[:1]),
        30,
        "the workers are at it",
    )
    for worker in service.workers:
        worker.kill()
    eventually(
        lambda: all(service.job(job)["state"] == "queued" for job in jobs),
        30,
        "the jobs are queued again",
    )
    assert service.job(jobs[0])["started_at"], "they had begun"
    for _ in range(2):
        service.add_worker()
    service.finished(jobs[0])
    service.http.delete(f"/v1/jobs/{jobs[1]}")
