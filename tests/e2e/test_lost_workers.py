"""Workers that are killed, or stopped for longer than their leases.

It costs seconds, and no image changes.
"""

from __future__ import annotations

import signal

import pytest

from tests.e2e.conftest import Service
from tests.support.processes import eventually
from worker.jobs.shard_queue import MAX_LOSSES

WITHIN_S = 120
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def pngs(service: Service, jobs: list[str]) -> list[dict[int, bytes]]:
    """Wait until all jobs have finished, and return the PNGs of each."""
    for job in jobs:
        service.finished(job, within_s=WITHIN_S)
    return [service.pngs(job) for job in jobs]


def test_a_killed_worker_costs_seconds_and_no_byte_of_any_samplers_images(
    calm: Service,
) -> None:
    # They are so few that any machine steps them all at once. Otherwise the third job's chains
    # might be saved when the first one's are gone.
    recipes = [
        {"count": 2, "seed": 5, "steps": 800, "sampler": sampler}
        for sampler in ("ddpm", "ddim", "dpmpp_2m")
    ]
    first = calm.add_worker("tests.support.short_leases")
    undisturbed = pngs(calm, [calm.post(**recipe)["id"] for recipe in recipes])
    jobs = [calm.post(**recipe)["id"] for recipe in recipes]
    eventually(
        lambda: all(calm.redis.exists(f"ddpm:job:{job}:chains") for job in jobs),
        120,
        "chains of every job are saved",
    )
    first.kill()
    second = calm.add_worker()
    assert pngs(calm, jobs) == undisturbed
    assert [calm.job(job)["attempts"] for job in jobs] == [2, 2, 2]
    resumed = [line for line in second.log.read_text().splitlines() if "resume" in line]
    assert all(any(job in line for line in resumed) for job in jobs)
    assert not any("chains" in key for key in calm.key_names())


def test_a_worker_suspended_past_its_lease_drops_the_shard_and_does_new_work(
    calm: Service,
) -> None:
    recipe = {"count": 20, "seed": 4, "steps": 250}
    for _ in range(2):
        calm.add_worker("tests.support.short_leases")
    job = calm.post(**recipe)["id"]
    eventually(lambda: calm.job(job)["progress"]["fraction"] > 0.05, 120, "the job is under way")
    late = calm.holder(job)
    other = next(worker for worker in calm.workers if worker is not late)
    late.signal(signal.SIGSTOP)
    by_the_other = pngs(calm, [job])
    late.signal(signal.SIGCONT)
    assert other.stop(within_s=60) == 0
    assert pngs(calm, [calm.post(**recipe)["id"]]) == by_the_other, "it works for others again"
    assert pngs(calm, [job]) == by_the_other
    assert calm.job(job)["attempts"] == 2
    assert not [key for key in calm.key_names() if job in key and "chains" in key]


def test_a_worker_whose_device_hangs_while_it_breaks_off_ends_all_the_same(calm: Service) -> None:
    job = calm.post(count=3, steps=10)["id"]
    worker = calm.add_worker("tests.support.hanging_worker")
    assert worker.exit_code(120) == 1
    assert "the worker has not stopped for 10 s" in worker.log.read_text()
    calm.add_worker()
    calm.finished(job)


def test_workers_whose_step_throws_exit_with_a_status_and_the_job_says_why(
    calm: Service,
) -> None:
    job = calm.post(count=3, steps=10)["id"]
    for _ in range(MAX_LOSSES):
        thrower = calm.add_worker("tests.support.throwing_worker")
        assert thrower.exit_code(120) == 1
        assert "Traceback" in thrower.log.read_text()
    calm.add_worker()
    eventually(lambda: calm.job(job)["state"] == "failed", 120, "the job has failed")
    reason = "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert f"(the last said: {reason})" in calm.job(job)["error"]["message"]
    calm.finished(calm.post(count=1, steps=5)["id"])
