"""Every case of `bench/commands/fleet.py` runs on a service of its own, in tiny sizes."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator

import pytest

from bench.fleet import backlog, costs, rates, shares, waits
from bench.fleet.server_costs import script_names
from bench.fleet.stub_service import ROOT, PostedJob, StubPace, StubService, stub_service

pytestmark = [
    pytest.mark.redis,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc"),
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StubService]:
    with stub_service(tmp_path_factory.mktemp("fleet")) as started:
        yield started


def test_stub_workers_finish_jobs_and_count_every_image_step(service: StubService) -> None:
    ids = service.post([PostedJob(3, 5), PostedJob(2, 5, owner="ben", model="second")])
    with service.workers([StubPace()] * 2) as workers:
        service.until_idle()
        assert sum(workers.image_steps()) == 25
    assert all(times.finished_at < math.inf for times in service.times(ids))


def test_a_backlog_posted_without_http_is_worked_off_like_any_other(service: StubService) -> None:
    posted = [("ben", {"model": "second", "count": 2, "steps": 3})] * 3
    ids = backlog.post(posted, service.settings)
    with service.workers([StubPace()]) as workers:
        service.until_idle()
        assert workers.image_steps() == [18]
    jobs = [service.call("GET", f"/v1/jobs/{job}", owner="ben") for job in ids]
    assert [job["state"] for job in jobs] == ["finished"] * 3


def test_one_worker_s_jobs_are_counted_with_what_they_cost_the_server(
    service: StubService,
) -> None:
    figures = rates.jobs(service, count=20, steps=2)
    assert figures["jobs/s"] > 0
    assert figures["server reads a job"] > 0
    assert figures["server CPU a job, µs"] > 0


def test_shares_of_owners_and_workers_add_up(service: StubService) -> None:
    assert 0 < shares.by_owner(service, count=16, steps=2)["share of the second owner"] <= 1
    late = shares.late(service, pace=1000, backlog_s=60, seconds=1, steps=500)
    assert all(0 <= share <= 1 for share in late.values())
    assert service.open_jobs() == 0


def test_late_jobs_are_placed_among_those_that_wait(service: StubService) -> None:
    found = waits.behind(service, backlog=16, steps=2, refilled=True)
    assert len(found) == len(waits.LATE_JOBS)
    assert all(share >= 0 for share in found.values())


def test_an_idle_worker_s_first_step_comes_after_the_post(service: StubService) -> None:
    figures = waits.first_step(service, times=3, pace=1000, steps=2)
    assert figures["post to first step, median ms"] > 0


def test_scripts_are_listed_by_their_names(service: StubService) -> None:
    names = script_names(ROOT)
    figures = costs.by_length(service, names, shards=17, steps=2)
    assert all(value > 0 for value in figures.values()), figures
    assert "take, µs a job" in costs.scripts(service, names, jobs=4, steps=2)
