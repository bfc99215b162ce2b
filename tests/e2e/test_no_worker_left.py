"""The state of a job that no worker works on any more."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import Service
from tests.support.processes import eventually


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_job_whose_workers_were_all_killed_is_queued_until_another_finishes_it(
    calm: Service,
) -> None:
    for _ in range(2):
        calm.add_worker("tests.support.short_leases")
    jobs = [calm.post(count=count, steps=steps)["id"] for count, steps in ((1, 400), (130, 1000))]
    eventually(lambda: calm.job(jobs[0])["progress"]["fraction"] > 0, 120, "the workers work")
    for worker in calm.workers:
        worker.kill()
    eventually(
        lambda: all(calm.job(job)["state"] == "queued" for job in jobs),
        120,
        "the jobs are queued again",
    )
    assert calm.job(jobs[0])["started_at"], "they had begun"
    for _ in range(2):
        calm.add_worker()
    calm.finished(jobs[0])
    calm.http.delete(f"/v1/jobs/{jobs[1]}")
