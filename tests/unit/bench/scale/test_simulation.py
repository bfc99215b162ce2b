"""The simulated fleet keeps the rules of the real one, and its arithmetic can be done by hand."""

from __future__ import annotations

from random import Random

import pytest

from bench.scale.simulation import (
    Device,
    JobArrival,
    Overheads,
    Rotation,
    SimulatedFleet,
    SimulatedWorker,
    poisson,
)
from tests.support.jobs import make_recipe, make_shard
from worker.jobs.domain import Priority

FREE = Overheads()
# A step of any batch takes 0.1 s.
FLAT = Device(image_steps_per_s=10_000, least_s=0.1)


def run(
    arrivals: list[JobArrival], *devices: Device, overheads: Overheads = FREE
) -> tuple[list[float], SimulatedFleet]:
    fleet = SimulatedFleet(devices, overheads, Random(1))
    return fleet.run(arrivals), fleet


def test_a_job_alone_takes_its_steps_and_what_is_around_them() -> None:
    around = Overheads(start_s=0.05, worker_s=0.01)
    [seconds], _ = run([JobArrival(3, count=4, steps=10)], FLAT, overheads=around)
    assert seconds == pytest.approx(0.05 + 0.01 + 10 * 0.1)


def test_jobs_join_a_running_batch_at_its_next_step() -> None:
    first, second = run([JobArrival(0, 1, 10), JobArrival(0.25, 1, 10)], FLAT)[0]
    assert first == pytest.approx(1.0)
    assert second == pytest.approx(0.05 + 1.0)


def test_a_fleet_makes_every_image_step_once() -> None:
    _, fleet = run(poisson(50, 5, 100, 7, Random(2), bulk_share=0.3), FLAT, FLAT)
    assert sum(worker.image_steps for worker in fleet.workers) == 50 * 100 * 7


def test_workers_share_a_backlog_by_their_pace() -> None:
    fast, slow = Device(3000), Device(1000)
    _, fleet = run([JobArrival(0, 8, 50)] * 400, fast, slow)
    assert fleet.workers[1].image_steps / (400 * 8 * 50) == pytest.approx(0.25, abs=0.02)


def test_an_owner_s_job_is_not_behind_another_owner_s_backlog() -> None:
    backlog = [JobArrival(0, 64, 20)] * 100
    *theirs, mine = run([*backlog, JobArrival(1, 1, 20, owner="another")], Device(1000))[0]
    assert mine < 0.1 * max(theirs)


def test_bulk_has_one_place_in_eight_beside_an_interactive_backlog() -> None:
    interactive = [JobArrival(0, 64, 10)] * 100
    bulk = [JobArrival(0, 64, 10, priority=Priority.BULK)] * 10
    seconds = run([*interactive, *bulk], Device(1000))[0]
    assert max(seconds[100:]) == pytest.approx(8 * 10 * 64 * 10 / 1000, rel=0.15)


def test_the_job_store_s_time_bounds_the_jobs_a_second_of_all_workers() -> None:
    arrivals = [JobArrival(0, 1, 1)] * 1000
    seconds = run(arrivals, *[Device(1e9)] * 8, overheads=Overheads(server_s=0.01))[0]
    assert max(seconds) == pytest.approx(1000 * 0.01, rel=0.05)


def test_of_the_shards_of_a_take_one_in_eight_is_bulk_while_both_wait() -> None:
    recipe = make_recipe(steps=10)
    waiting = {priority: Rotation() for priority in Priority}
    for number in range(100):
        for priority in Priority:
            waiting[priority].push(
                make_shard(recipe, job=str(number), count=1, priority=priority.value)
            )
    taken = SimulatedWorker(Device(10_000)).take(waiting)
    bulk = [n for n, shard in enumerate(taken) if shard.priority is Priority.BULK]
    assert (len(taken), bulk) == (64, list(range(7, 64, 8)))
