"""The choice of the models that a worker has in memory, when it offers more than fit.

A choice is a function of what waits and of what is there. It knows no tensors and no clock.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

# A model that has work keeps its memory for so long though another one waits.
SLICE_S = 10.0
# Or for so many times as long as it took to load, so that loading takes a tenth of the time.
SLICE_LOADS = 10
# No slice is longer, however long a model was measured when it was loaded first.
LONGEST_SLICE_S = 120.0


def slice_s(load_s: float) -> float:
    """Return the seconds that a model may stay though another waits, if it took so long to load."""
    return min(LONGEST_SLICE_S, max(SLICE_S, SLICE_LOADS * load_s))


@dataclass(frozen=True, slots=True)
class Resident:
    """A model in memory.

    Attributes:
        needs: bytes that it takes.
        has_work: whether the worker holds images of it, or jobs of it wait.
        loaded_at: when it was loaded, in seconds.
        used_at: when it last had work.
        slice_s: seconds after `loaded_at` for which it stays while it has work.
    """

    needs: int
    has_work: bool
    loaded_at: float
    used_at: float
    slice_s: float = SLICE_S


@dataclass(frozen=True, slots=True)
class Wanted:
    """A model that is not in memory, and of which jobs wait.

    Attributes:
        needs: bytes that it will take.
        since: when its jobs were first seen to wait, in seconds.
    """

    needs: int
    since: float


@dataclass(frozen=True, slots=True)
class Choice(Generic[K]):
    """What is to happen next.

    Attributes:
        load: the model that fits the memory that is free.
        leave: models that are to take no more work, and to be put away once they hold none.
    """

    load: K | None = None
    leave: frozenset[K] = frozenset()


def choose(
    bound: int, now: float, wanted: Mapping[K, Wanted], residents: Mapping[K, Resident]
) -> Choice[K]:
    """Choose what is loaded and what is put away.

    The model whose jobs wait longest is first. It gets memory that is free, then that of models
    without work, the least recently used first, then that of models whose slice is over. A smaller
    one may go before it while it waits, but for no longer than a slice: then nobody does, so that
    all slices end.

    Args:
        bound: bytes that all models may take together.
        now: the time in seconds.
        wanted: the models that are not there and have work. Each fits the bound alone.
        residents: the models that are there.
    """
    free = bound - sum(resident.needs for resident in residents.values())
    for name in sorted(wanted, key=lambda key: wanted[key].since):
        lacking = wanted[name].needs - free
        if lacking <= 0:
            return Choice(load=name)
        leaving = _leaving(lacking, now, residents)
        if leaving is not None:
            return Choice(leave=frozenset(leaving))
        if now - wanted[name].since >= SLICE_S:
            break
    return Choice()


def _leaving(lacking: int, now: float, residents: Mapping[K, Resident]) -> Sequence[K] | None:
    """Name the residents that give way for so many bytes; None if they are not enough."""
    idle = [key for key, resident in residents.items() if not resident.has_work]
    ripe = [
        key
        for key, resident in residents.items()
        if resident.has_work and now - resident.loaded_at >= resident.slice_s
    ]
    idle.sort(key=lambda key: residents[key].used_at)
    ripe.sort(key=lambda key: residents[key].loaded_at)
    return _enough(lacking, [*idle, *ripe], residents)


def _enough(lacking: int, keys: Iterable[K], residents: Mapping[K, Resident]) -> Sequence[K] | None:
    chosen: list[K] = []
    for key in keys:
        chosen.append(key)
        lacking -= residents[key].needs
        if lacking <= 0:
            return chosen
    return None
