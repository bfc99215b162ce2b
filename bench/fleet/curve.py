"""The latency of a fleet against its load, measured and simulated for the same arrivals."""

from __future__ import annotations

import threading
import time
from random import Random

from bench.fleet.rates import Figures
from bench.fleet.stub_service import PostedJob, StubPace, StubService
from bench.scale.simulation import (
    Device,
    JobArrival,
    Overheads,
    SimulatedFleet,
    percentile,
    poisson,
)

LOADS = (0.4, 0.8)
# Of the smallest batch: a step of several images costs no more, as on a GPU.
_LEAST_S = 0.02
_COUNT = 4


def latencies(
    service: StubService, workers: int, pace: float, jobs: int, steps: int, start_s: float
) -> Figures:
    """Measure the time from post to end at two loads, and simulate it.

    Args:
        service: The service.
        workers: How many workers there are.
        pace: Image-steps a second of each.
        jobs: Jobs at each load.
        steps: Steps of each image.
        start_s: Seconds from a post to its first step, for the simulation.
    """
    figures: Figures = {}
    with service.workers([StubPace(pace, _LEAST_S)] * workers):
        for load in LOADS:
            per_s = load * workers * pace / (_COUNT * steps)
            arrivals = poisson(jobs, per_s, _COUNT, steps, Random(jobs))
            measured, came = _serve(service, arrivals)
            device = Device(pace, _LEAST_S)
            simulated = SimulatedFleet([device] * workers, Overheads(start_s), Random(0)).run(came)
            for name, share in (("p50", 0.5), ("p95", 0.95)):
                real, calculated = percentile(measured, share), percentile(simulated, share)
                figures |= {
                    f"{name} at load {load}, measured s": real,
                    f"{name} at load {load}, simulated s": calculated,
                    f"{name} at load {load}, simulated / measured": calculated / real,
                }
    return figures


def _serve(
    service: StubService, arrivals: list[JobArrival]
) -> tuple[list[float], list[JobArrival]]:
    """Post jobs when they are due.

    Returns:
        Seconds of each from post to end; and the jobs with the times at which they really came.
    """
    ids = [""] * len(arrivals)

    def post(number: int, job: PostedJob) -> None:
        [ids[number]] = service.post([job])

    began, threads = time.monotonic(), []
    for number, arrival in enumerate(arrivals):
        time.sleep(max(0.0, began + arrival.at_s - time.monotonic()))
        job = PostedJob(arrival.count, arrival.steps)
        threads.append(threading.Thread(target=post, args=(number, job)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    service.until_idle()
    times = service.times(ids)
    first = min(t.created_at for t in times)
    came = [
        JobArrival(t.created_at - first, arrival.count, arrival.steps)
        for t, arrival in zip(times, arrivals, strict=True)
    ]
    return [t.finished_at - t.created_at for t in times], came
