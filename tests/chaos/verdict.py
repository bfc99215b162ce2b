"""The verdict on a storm: its figures, and whether they are as promised."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from math import inf

from PIL import Image

from tests.chaos.clients import ClientOutcome
from tests.chaos.storm import PLANNED

JOBS_AT_LEAST = 30
# Chains are saved every second, so a kill costs half a second of one worker on average.
LOST_S_AT_MOST = 1.0


@dataclass(frozen=True)
class Verdict:
    """The figures of a storm.

    Attributes:
        seed: Seed of the storm.
        undisturbed: Outcomes of the jobs in peace.
        stormy: Outcomes of the same jobs in the storm.
        happened: What happened, and how often.
        setbacks: What clients met instead of answers, and how often.
        needed: Image-steps of the jobs.
        peaceful: Image-steps that were computed in peace.
        computed: Image-steps that were computed in the storm.
        peace_s: Seconds that the jobs took in peace.
        storm_s: Seconds that they took in the storm.
        left: What was left in the store and should not be.
        deaths: Processes that ended by themselves.
    """

    seed: int
    undisturbed: Sequence[ClientOutcome]
    stormy: Sequence[ClientOutcome]
    happened: Counter[str]
    setbacks: Counter[str]
    needed: int
    peaceful: int
    computed: int
    peace_s: float
    storm_s: float
    left: Sequence[str]
    deaths: Sequence[str] = ()

    @property
    def unfinished(self) -> list[str]:
        """Return a line for each job that did not finish in the storm."""
        return [
            f"{o.job['id']}: {o.job['state']} {o.job['error'] or ''}"
            for o in self.stormy
            if o.job["state"] != "finished"
        ]

    @property
    def images(self) -> int:
        """Return how many images there are."""
        return sum(len(outcome.pngs) for outcome in self.undisturbed)

    @property
    def differing(self) -> int:
        """Return how many images the storm changed or lost."""
        pairs = zip(self.undisturbed, self.stormy, strict=True)
        return sum(
            not is_same_picture(png, after.pngs.get(index))
            for before, after in pairs
            for index, png in before.pngs.items()
        )

    @property
    def twice(self) -> float:
        """Return the share of image-steps that were computed twice."""
        return self.computed / self.needed - 1

    @property
    def lost_s(self) -> float:
        """Return what the loss of a worker costs, in seconds of the whole fleet in peace.

        The share that is computed twice depends on how much work there is between two kills, and
        so on the machine. This does not.
        """
        losses = self.happened["kill worker"] + self.happened["pause"]
        return self.twice * self.peace_s / max(1, losses)

    def faults(self, twice_at_most: float = inf) -> list[str]:
        """Return the promises that were not kept, with the figures that show it.

        Args:
            twice_at_most: Share of image-steps that may be computed twice.
        """
        jobs = len(self.stormy)
        steps = f"{self.peaceful} image-steps, not {self.needed}"
        promises = [
            (jobs >= JOBS_AT_LEAST, f"{jobs} jobs are fewer than {JOBS_AT_LEAST}"),
            (self.peaceful == self.needed, f"the peaceful run computed {steps}"),
            (not self.unfinished, f"jobs that did not finish: {self.unfinished}"),
            (not self.differing, f"{self.differing} images differ"),
            (
                self.twice <= twice_at_most,
                f"{self.twice:.1%} of the image-steps were computed twice",
            ),
            (
                self.lost_s <= LOST_S_AT_MOST,
                f"the loss of a worker cost {self.lost_s:.2f} s of the fleet's work",
            ),
            (not self.left, f"left in the store: {self.left}"),
            (not self.deaths, f"processes ended by themselves: {self.deaths}"),
            (self.happened >= PLANNED, f"not all that was planned happened: {self.happened}"),
            (self.happened["kill worker"] > 0, "no worker was killed"),
        ]
        return [fault for kept, fault in promises if not kept]

    def __str__(self) -> str:
        met = ", ".join(f"{name} {number}" for name, number in sorted(self.setbacks.items()))
        twice = f"{self.computed - self.needed} of {self.needed}, {self.twice:.1%}"
        rows = {
            "seed": self.seed,
            "jobs finished": f"{len(self.stormy) - len(self.unfinished)} of {len(self.stormy)}",
            "images that differ": f"{self.differing} of {self.images}",
            "image-steps computed twice": twice,
            "lost with a worker": f"{self.lost_s:.2f} s of the fleet's work",
            "left in the store": len(self.left),
            "workers killed": self.happened["kill worker"],
            "workers stopped past the lease": self.happened["pause"],
            "Valkey killed": self.happened["kill store"],
            "APIs killed": self.happened["kill api"],
            "upgraded": self.happened["upgrade worker"] + self.happened["upgrade api"],
            "failovers of Valkey": self.happened["fail over"],
            "what clients met": met or "nothing",
            "most attempts of a job": max(outcome.job["attempts"] for outcome in self.stormy),
            "seconds in peace, in the storm": f"{self.peace_s:.0f}, {self.storm_s:.0f}",
        }
        return "\n".join(f"{name:32}{value}" for name, value in rows.items())


def is_same_picture(png: bytes, other: bytes | None) -> bool:
    """Tell whether two PNGs are the same, byte for byte.

    The commit before may write less into the recipe. Then the pixels are the same, and all that
    both recipes say.
    """
    if other is None or png == other:
        return png == other
    with Image.open(BytesIO(png)) as one, Image.open(BytesIO(other)) as two:
        recipes = [json.loads(picture.info["ddpm"]) for picture in (one, two)]
        both = recipes[0].keys() & recipes[1].keys()
        return (
            recipes[0].keys() != recipes[1].keys()
            and all(recipes[0][name] == recipes[1][name] for name in both)
            and one.tobytes() == two.tobytes()
        )
