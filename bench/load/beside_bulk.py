"""The cost of a job of 1,024 images and small interactive jobs to each other.

It is measured over HTTP, in one run.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from bench.lib.report import Report
from bench.systems.service import ServiceClient

# Small jobs before those that are measured.
WARM_UP = 3
# The big job, which is more than there is time for, so that it is cancelled at the end.
IMAGES = 1024
STEPS = 1000

T = TypeVar("T")


def run(
    client: ServiceClient, steps: int, jobs: int, every_s: float, alone_s: float, report: Report
) -> None:
    """Measure small jobs alone and next to the big one, and the big one alone before and after.

    Args:
        client: A client of the service.
        steps: Steps of each image of the small jobs.
        jobs: How many small jobs there are alone, and as many next to the big one.
        every_s: Seconds between small jobs next to the big one, on average.
        alone_s: Seconds that the big job is measured by itself, twice.
        report: Where the figures go.

    Raises:
        RuntimeError: The big job ended before it was measured.
    """
    unloaded = [time_small_job(client, steps) for _ in range(WARM_UP + jobs)][WARM_UP:]
    big = client.post(IMAGES, STEPS, priority="bulk")
    try:
        while not image_steps(client, big):
            time.sleep(0.1)
        _, before = rate_during(client, big, lambda: leave_alone(client, big, alone_s))
        beside, rate = rate_during(
            client, big, lambda: time_random_jobs(client, steps, jobs, every_s)
        )
        _, after = rate_during(client, big, lambda: leave_alone(client, big, alone_s))
    finally:
        client.cancel(big)
    report.say(
        f"{client.precision()}; {jobs} jobs of one image and {steps} steps, "
        f"one every {every_s:g} s on average; the big job has {IMAGES} images.\n"
    )
    tabulate(report, unloaded, beside, (before + after) / 2, rate)
    draw(report, unloaded, beside)


def time_small_job(client: ServiceClient, steps: int) -> float:
    """Return the seconds from the post to the answer that the job has finished."""
    start = time.perf_counter()
    client.finished(client.post(1, steps))
    return time.perf_counter() - start


def time_random_jobs(client: ServiceClient, steps: int, jobs: int, every_s: float) -> list[float]:
    """Post small jobs at random, every `every_s` seconds on average; return the seconds of each."""
    chance = random.Random(1)
    with ThreadPoolExecutor(jobs) as clients:
        waiting = []
        for _ in range(jobs):
            waiting.append(clients.submit(time_small_job, client, steps))
            time.sleep(chance.expovariate(1 / every_s))
        return [job.result() for job in waiting]


def image_steps(client: ServiceClient, job: str) -> float:
    """Return how many image-steps of the big job are done."""
    return float(client.job(job)["progress"]["fraction"]) * IMAGES * STEPS


def leave_alone(client: ServiceClient, big: str, seconds: float) -> None:
    """Wait so many seconds, and then until the job reports another step.

    Raises:
        RuntimeError: The job ended, so no step will come.
    """
    done = image_steps(client, big)
    time.sleep(seconds)
    while image_steps(client, big) == done:
        if (state := client.job(big)["state"]) != "running":
            raise RuntimeError(
                f"the big job is {state} before it was measured by itself; "
                "take less of --jobs or --alone-s"
            )
        time.sleep(0.1)


def rate_during(client: ServiceClient, big: str, action: Callable[[], T]) -> tuple[T, float]:
    """Return the result of `action`, and the big job's image-steps per second meanwhile."""
    start = time.perf_counter()
    done = image_steps(client, big)
    result = action()
    return result, (image_steps(client, big) - done) / (time.perf_counter() - start)


def tabulate(
    report: Report, unloaded: Sequence[float], beside: Sequence[float], alone: float, rate: float
) -> None:
    """Report both sides in a table.

    Args:
        report: Where it goes.
        unloaded: Seconds of small jobs alone.
        beside: Seconds of small jobs next to the big one.
        alone: Image-steps a second of the big job alone.
        rate: Image-steps a second of the big job next to small ones.
    """
    p50, p95 = np.percentile(unloaded, (50, 95))
    p50_beside, p95_beside = np.percentile(beside, (50, 95))
    rows = [
        ["small job, median", f"{p50:.2f} s", f"{p50_beside:.2f} s", f"{p50_beside / p50:.2f}"],
        ["small job, p95", f"{p95:.2f} s", f"{p95_beside:.2f} s", f"{p95_beside / p95:.2f}"],
        [
            "small job, p95 over the unloaded median",
            f"{p95 / p50:.2f}",
            f"{p95_beside / p50:.2f}",
            f"{p95_beside / p95:.2f}",
        ],
        ["big job, image-steps/s", f"{alone:.0f}", f"{rate:.0f}", f"{rate / alone:.2f}"],
    ]
    report.table(["", "alone", "together", "together / alone"], rows)


def draw(report: Report, unloaded: Sequence[float], beside: Sequence[float]) -> None:
    """Draw the distributions of the small jobs' latencies."""
    with report.plot() as axes:
        for name, latencies in (("alone", unloaded), ("beside the big job", beside)):
            axes.ecdf(latencies, label=name)
        axes.set(
            xlabel="latency of a job of one image, s", ylabel="share of the jobs", xlim=(0, None)
        )
        axes.grid(alpha=0.3)
        axes.legend()
