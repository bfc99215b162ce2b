"""Jobs of every kind, drawn from a seed, which clients post."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

# Models of the same shape, with other weights.
TINY = ("tiny", "other")
_COUNTS = (1, 1, 1, 2, 5, 16, 33, 64, 65, 96, 130)
_SAMPLERS: tuple[dict[str, Any], ...] = (
    {"sampler": "ddpm"},
    {"sampler": "ddpm", "variance": "fixed_large"},
    {"sampler": "ddpm", "variance": "analytic"},
    {"sampler": "ddim"},
    {"sampler": "ddim", "eta": 0.5},
    {"sampler": "dpmpp_2m"},
)


@dataclass(frozen=True, slots=True)
class JobSize:
    """The amount of work.

    Attributes:
        jobs: Jobs of the two tiny models.
        steps: The most steps of these.
        shipped_jobs: Small jobs of the shipped model.
    """

    jobs: int
    steps: int
    shipped_jobs: int


FULL = JobSize(jobs=54, steps=300, shipped_jobs=6)
# A kill costs what was computed since the last save, so there must be much more work than that.
SHORT = JobSize(jobs=32, steps=200, shipped_jobs=0)


def draw_jobs(random: Random, size: JobSize) -> list[dict[str, Any]]:
    """Return bodies of POST /v1/jobs, in random order."""
    tiny = [_job(random, TINY[n % 2], _COUNTS, size.steps) for n in range(size.jobs)]
    shipped = [_job(random, "fashion-mnist-28", (1, 2, 8), 15) for _ in range(size.shipped_jobs)]
    bodies = tiny + shipped
    random.shuffle(bodies)
    return bodies


def image_steps(bodies: list[dict[str, Any]]) -> int:
    """Return the image-steps of all jobs."""
    return sum(body["count"] * body["steps"] for body in bodies)


def _job(random: Random, model: str, counts: tuple[int, ...], most_steps: int) -> dict[str, Any]:
    return {
        "model": model,
        "count": random.choice(counts),
        "start": random.choice((0, 0, 1000)),
        "seed": random.randrange(2**53),
        "steps": random.randint(2, most_steps),
        "priority": random.choice(("interactive", "bulk")),
        **random.choice(_SAMPLERS),
    }
