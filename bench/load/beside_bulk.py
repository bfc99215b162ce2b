"""What a job of 1,024 images and small interactive jobs cost each other, over HTTP and in one run."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from bench.lib.report import Report
from bench.systems.service import ServiceClient

WARM_UP = 3
IMAGES, STEPS = (
    1024,
    1000,
)  # of the big job: more than there is time for, so it is cancelled at the end

T = TypeVar("T")


def run(
    client: ServiceClient, steps: int, jobs: int, every_s: float, alone_s: float, report: Report
) -> None:
    """Small jobs one after another; then the big one alone, with as many small ones coming by chance, and alone again."""
    unloaded = [small(client, steps) for _ in range(WARM_UP + jobs)][WARM_UP:]
    big = client.post(IMAGES, STEPS, priority="bulk")
    try:
        while not image_steps(client, big):
            time.sleep(0.1)
        _, before = rate_during(client, big, lambda: leave_alone(client, big, alone_s))
        beside, rate = rate_during(
            client, big, lambda: coming_by_chance(client, steps, jobs, every_s)
        )
        _, after = rate_during(client, big, lambda: leave_alone(client, big, alone_s))
    finally:
        client.cancel(big)
    report.say(
        f"{client.precision()}; {jobs} jobs of one image and {steps} steps, one every {every_s:g} s on average; "
        f"the big job has {IMAGES} images.\n"
    )
    tabulate(report, unloaded, beside, (before + after) / 2, rate)
    draw(report, unloaded, beside)


def small(client: ServiceClient, steps: int) -> float:
    """Seconds from the post to the answer that the job has finished."""
    start = time.perf_counter()
    client.finished(client.post(1, steps))
    return time.perf_counter() - start


def coming_by_chance(client: ServiceClient, steps: int, jobs: int, every_s: float) -> list[float]:
    chance = random.Random(1)
    with ThreadPoolExecutor(jobs) as clients:
        waiting = []
        for _ in range(jobs):
            waiting.append(clients.submit(small, client, steps))
            time.sleep(chance.expovariate(1 / every_s))
        return [job.result() for job in waiting]


def image_steps(client: ServiceClient, job: str) -> float:
    """What has been done of the big job."""
    return float(client.job(job)["progress"]["fraction"]) * IMAGES * STEPS


def leave_alone(client: ServiceClient, big: str, seconds: float) -> None:
    """So long, and until a step has been told of. Raises RuntimeError where there is none to come."""
    done = image_steps(client, big)
    time.sleep(seconds)
    while image_steps(client, big) == done:
        if (state := client.job(big)["state"]) != "running":
            raise RuntimeError(
                f"the big job is {state} before it was measured by itself; take less of --jobs or --alone-s"
            )
        time.sleep(0.1)


def rate_during(client: ServiceClient, big: str, what: Callable[[], T]) -> tuple[T, float]:
    """What `what` gives, and the big job's image-steps per second meanwhile."""
    start, done = time.perf_counter(), image_steps(client, big)
    result = what()
    return result, (image_steps(client, big) - done) / (time.perf_counter() - start)


def tabulate(
    report: Report, unloaded: Sequence[float], beside: Sequence[float], alone: float, rate: float
) -> None:
    (p50, p95), (p50_beside, p95_beside) = (
        np.percentile(unloaded, (50, 95)),
        np.percentile(beside, (50, 95)),
    )
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
    """How many of the small jobs took at most so long."""
    with report.plot() as axes:
        for name, latencies in (("alone", unloaded), ("beside the big job", beside)):
            axes.ecdf(latencies, label=name)
        axes.set(
            xlabel="latency of a job of one image, s", ylabel="share of the jobs", xlim=(0, None)
        )
        axes.grid(alpha=0.3)
        axes.legend()
