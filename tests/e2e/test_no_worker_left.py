"""The state of a job that no worker works on any more."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import Service
from tests.support.processes import eventually


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_job_whose_workers_were_all_killed_is_queued_until_another_finishes_it(
    service: Service,
) -> None:
    jobs = [service.post(count=count, steps=1000)["id"] for count in (1, 130)]
    eventually(lambda: service.job(jobs[0])["progress"]["fraction"] > 0, 120, "the workers work")
    for worker in service.workers:
        worker.kill()
    eventually(
        lambda: all(service.job(job)["state"] == "queued" for job in jobs),
        120,
        "the jobs are queued again",
    )
    assert service.job(jobs[0])["started_at"], "they had begun"
    for _ in range(2):
        service.add_worker()
    service.finished(jobs[0])
    service.http.delete(f"/v1/jobs/{jobs[1]}")
