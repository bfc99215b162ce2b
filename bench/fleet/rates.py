"""Rates of a service whose networks only wait: jobs, image-steps, and what they cost the server."""

from __future__ import annotations

import time
from collections.abc import Sequence

from bench.fleet.server_costs import server_costs
from bench.fleet.stub_service import JobTimes, PostedJob, StubPace, StubService

Figures = dict[str, float]


def jobs(service: StubService, count: int, steps: int) -> Figures:
    """Measure the jobs a second of one worker, of one image each, if the network costs nothing.

    All are posted before the worker starts, so that the API takes no time from it.
    """
    began = time.monotonic()
    ids = service.post([PostedJob(steps=steps)] * count)
    posted_s = time.monotonic() - began
    polls = service.polls
    with service.workers([StubPace()]), server_costs(service.redis) as costs:
        service.until_idle()
    return {
        "POSTs/s": count / posted_s,
        "jobs/s": count / seconds(service.times(ids)),
        "server reads a job": (costs.reads - (service.polls - polls)) / count,
        "server CPU a job, µs": 1e6 * costs.cpu_s / count,
        "jobs/s that fill the server's core": count / costs.cpu_s,
    }


def sizes(service: StubService, images: int, steps: int) -> Figures:
    """Compare the image-steps a second of one-image jobs with those of jobs of 64.

    The network costs nothing.
    """
    figures = {}
    for size in (1, 64):
        ids = service.post([PostedJob(size, steps)] * (images // size))
        with service.workers([StubPace()]):
            service.until_idle()
        figures[f"image-steps/s, jobs of {size}"] = (
            images // size * size * steps / seconds(service.times(ids))
        )
    one, many = figures.values()
    return {**figures, "jobs of 1 / jobs of 64": one / many}


def many(service: StubService, workers: int, pace: float, jobs_each: int, steps: int) -> Figures:
    """Compare the jobs a second of several workers with those of one.

    Args:
        service: The service.
        workers: How many workers there are.
        pace: Image-steps a second of each. Slow ones leave the processor to the server.
        jobs_each: One-image jobs for each worker.
        steps: Steps of each image.
    """
    figures = {}
    for number in (1, workers):
        ids = service.post([PostedJob(steps=steps)] * (jobs_each * number))
        with server_costs(service.redis) as costs, service.workers([StubPace(pace)] * number):
            service.until_idle()
        figures[f"jobs/s of {number}"] = len(ids) / seconds(service.times(ids))
    one, all_ = figures.values()
    return {
        **figures,
        "times the jobs/s of one": all_ / one,
        "jobs/s that fill the server's core": len(ids) / costs.cpu_s,
    }


def seconds(times: Sequence[JobTimes]) -> float:
    """Return the seconds from the first start of a job to the last end."""
    return max(t.finished_at for t in times) - min(t.started_at for t in times)
