"""Plans by recipe, so that the jobs of one recipe share one."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

from models.diffusion.plans import Plan

MOST_BYTES = 64 * 1024 * 1024
# Plans of few rows take little, but each some kilobytes that are not counted.
MOST_PLANS = 256
Recipe = tuple[str, int, str, float]


class PlanCache:
    """Makes plans, and keeps those that were asked for last."""

    def __init__(
        self, make: Callable[[str, int, str, float], Plan], most_bytes: int = MOST_BYTES
    ) -> None:
        """Make a cache that is empty.

        Args:
            make: makes a plan of sampler, steps, variance and eta.
            most_bytes: bytes of all plans that are kept. A larger plan is made each time.
        """
        self._make = make
        self._most_bytes = most_bytes
        # The one that was asked for last comes last.
        self._plans: dict[Recipe, Plan] = {}
        self._lock = Lock()

    @property
    def size_bytes(self) -> int:
        """Bytes of all plans that are kept."""
        with self._lock:
            return self._size_bytes()

    def __call__(self, sampler: str, steps: int, variance: str, eta: float) -> Plan:
        """Return the plan of a recipe.

        Raises:
            ValueError: there is no such plan.
        """
        recipe = sampler, steps, variance, eta
        with self._lock:
            plan = self._plans.pop(recipe, None)
            is_new = plan is None
            plan = self._plans[recipe] = plan or self._make(*recipe)
            while is_new and self._is_too_full():
                del self._plans[next(iter(self._plans))]
            return plan

    def _is_too_full(self) -> bool:
        return len(self._plans) > MOST_PLANS or self._size_bytes() > self._most_bytes

    def _size_bytes(self) -> int:
        return sum(plan.size_bytes for plan in self._plans.values())
