"""What a storm showed: the figures, and whether they are as promised."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.chaos.clients import Outcome
from tests.chaos.storm import PLANNED

TWICE_AT_MOST = 0.15
JOBS_AT_LEAST = 30


@dataclass(frozen=True)
class Verdict:
    """`needed` and `computed` in image-steps, of the storm; `peaceful` those of the same jobs, undisturbed."""

    seed: int
    undisturbed: Sequence[Outcome]
    stormy: Sequence[Outcome]
    happened: Counter[str]
    setbacks: Counter[str]
    needed: int
    peaceful: int
    computed: int
    peace_s: float
    storm_s: float
    left: Sequence[str]
    deaths: Sequence[str] = field(default=())  # that nobody asked for

    @property
    def unfinished(self) -> list[str]:
        return [
            f"{o.job['id']}: {o.job['state']} {o.job['error'] or ''}"
            for o in self.stormy
            if o.job["state"] != "finished"
        ]

    @property
    def images(self) -> int:
        return sum(len(outcome.pngs) for outcome in self.undisturbed)

    @property
    def differing(self) -> int:
        """Images that the storm changed or lost."""
        pairs = zip(self.undisturbed, self.stormy, strict=True)
        return sum(
            after.pngs.get(index) != png
            for before, after in pairs
            for index, png in before.pngs.items()
        )

    @property
    def twice(self) -> float:
        return self.computed / self.needed - 1

    def faults(self) -> list[str]:
        """Promises that were not kept, with what shows it."""
        promises = {
            f"{len(self.stormy)} jobs are fewer than {JOBS_AT_LEAST}": len(self.stormy)
            >= JOBS_AT_LEAST,
            f"the peaceful run computed {self.peaceful} image-steps, not {self.needed}": self.peaceful
            == self.needed,
            f"jobs that did not finish: {self.unfinished}": not self.unfinished,
            f"{self.differing} images differ": not self.differing,
            f"{self.twice:.1%} of the image-steps were computed twice": self.twice <= TWICE_AT_MOST,
            f"left in the store: {self.left}": not self.left,
            f"processes ended by themselves: {self.deaths}": not self.deaths,
            f"not all that was planned happened: {self.happened}": self.happened >= PLANNED,
            "no worker was killed": self.happened["kill worker"] > 0,
        }
        return [fault for fault, kept in promises.items() if not kept]

    def __str__(self) -> str:
        met = ", ".join(f"{name} {number}" for name, number in sorted(self.setbacks.items()))
        rows = {
            "seed": self.seed,
            "jobs finished": f"{len(self.stormy) - len(self.unfinished)} of {len(self.stormy)}",
            "images that differ": f"{self.differing} of {self.images}",
            "image-steps computed twice": f"{self.computed - self.needed} of {self.needed}, {self.twice:.1%}",
            "left in the store": len(self.left),
            "workers killed": self.happened["kill worker"],
            "workers stopped past the lease": self.happened["pause"],
            "Valkey killed": self.happened["kill store"],
            "APIs killed": self.happened["kill api"],
            "what clients met": met or "nothing",
            "most attempts of a job": max(outcome.job["attempts"] for outcome in self.stormy),
            "seconds in peace, in the storm": f"{self.peace_s:.0f}, {self.storm_s:.0f}",
        }
        return "\n".join(f"{name:32}{value}" for name, value in rows.items())
