"""A small model of a day's work: jobs of three sizes that arrive at random."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Size:
    """A kind of job, and its share of all jobs."""

    name: str
    images: int
    interactive: bool
    share: float


SIZES = (
    Size("1 image", 1, True, 0.70),
    Size("8 images", 8, True, 0.25),
    Size("64 images, bulk", 64, False, 0.05),
)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A job that comes `at_s` after the start."""

    at_s: float
    size: Size


def poisson(jobs: int, images_per_s: float, seed: int) -> list[Arrival]:
    """Return independent arrivals that ask for `images_per_s` on average, in order of time.

    Every size has exactly its share of the jobs, and at least one. Left to chance, few jobs would
    be another load each time.
    """
    chance = random.Random(seed)
    sizes = [size for size in SIZES for _ in range(max(1, round(size.share * jobs)))]
    chance.shuffle(sizes)
    jobs_per_s = images_per_s * len(sizes) / sum(size.images for size in sizes)
    at_s = 0.0
    arrivals = []
    for size in sizes:
        at_s += chance.expovariate(jobs_per_s)
        arrivals.append(Arrival(at_s, size))
    return arrivals
