"""Arrivals through an engine, ours and first come first served."""

from __future__ import annotations

import torch

from bench.load.arrivals import SIZES, Arrival
from bench.load.open_loop import Request, ServedLoad, as_the_service, first_come_first_served, serve
from models.diffusion.plans import compile_plan
from tests.support.networks import SCHEDULE, SHAPE, gaussian_eps
from worker.engine.engine import Engine
from worker.engine.pool import Pool

ONE, EIGHT, BULK = SIZES
PLAN = compile_plan(SCHEDULE, 5)


def served(request: Request, *arrivals: Arrival, capacity: int = 256) -> ServedLoad:
    engine = Engine(Pool(gaussian_eps, SHAPE, capacity, torch.device("cpu")), {2: 1.0, 4: 1.5})
    return serve(engine, arrivals, PLAN, request)


def test_every_image_of_every_job_is_made() -> None:
    result = served(as_the_service, Arrival(0.0, ONE), Arrival(0.001, EIGHT), Arrival(0.002, BULK))
    assert result.image_steps == 5 * (1 + 8 + 64)
    assert all(0 < latency <= result.seconds for latency in result.latencies)


def test_a_small_job_overtakes_a_big_one_that_came_first() -> None:
    arrivals = (Arrival(0.0, BULK), Arrival(0.0, ONE))
    big, small = served(as_the_service, *arrivals).latencies
    assert small < big


def test_first_come_first_served_keeps_the_order() -> None:
    arrivals = (Arrival(0.0, BULK), Arrival(0.0, ONE))
    big, small = served(first_come_first_served, *arrivals).latencies
    assert small >= big


def test_a_job_that_does_not_fit_the_pool_waits_outside_it() -> None:
    arrivals = (Arrival(0.0, BULK), Arrival(0.0, BULK))
    first, second = served(as_the_service, *arrivals, capacity=64).latencies
    assert second > first


def test_idle_time_is_left_out() -> None:
    result = served(as_the_service, Arrival(0.0, ONE), Arrival(3600.0, ONE))
    assert result.seconds > 3600
    assert max(result.latencies) < 3600
