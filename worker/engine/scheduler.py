"""The choice of the chains that step next: pure Python on plain numbers, with no tensors.

Interactive chains come before bulk ones, except for a floor that keeps bulk work moving. Within a
class, owners get equal shares. Of an owner's jobs, the one with the least work left comes first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, zip_longest
from typing import NamedTuple

from worker.jobs.policy import FLOOR


@dataclass(slots=True)
class ChainGroup:
    """The chains of one job, owner and class, in the order in which they came.

    `rows_left` counts the plan rows that all of them still have to take.
    """

    job: Hashable
    owner: str
    interactive: bool
    rows_left: int = 0
    chains: dict[Hashable, None] = field(default_factory=dict)

    @property
    def key(self) -> Hashable:
        """Name of the group: no two groups have the same."""
        return self.job, self.owner, self.interactive

    def join(self, chain: Hashable, rows: int) -> None:
        """Add a chain that has so many rows left."""
        self.chains[chain] = None
        self.rows_left += rows

    def leave(self, chain: Hashable, rows: int) -> None:
        """Remove a chain that has so many rows left."""
        del self.chains[chain]
        self.rows_left -= rows


class Served(NamedTuple):
    """Places that all steps so far gave to each class.

    One step is too small to share fairly; many steps together are not.
    """

    interactive: int = 0
    bulk: int = 0

    def plus(self, picked: int, interactive: int) -> Served:
        """Add a step of `picked` chains, `interactive` of them interactive."""
        return Served(self.interactive + interactive, self.bulk + picked - interactive)


NOTHING_SERVED = Served()


def waiting(groups: Iterable[ChainGroup], interactive: bool) -> int:
    """Count the chains of one class."""
    return sum(len(group.chains) for group in groups if group.interactive is interactive)


def pick(
    groups: Sequence[ChainGroup], places: int, served: Served = NOTHING_SERVED
) -> list[Hashable]:
    """Choose at most `places` chains for the next step, the interactive ones first.

    Args:
        groups: The chains to choose from.
        places: How many may step.
        served: The places that the steps before gave.
    """
    interactive = [group for group in groups if group.interactive]
    bulk = [group for group in groups if not group.interactive]
    before = sum(served)
    floor = min(waiting(bulk, interactive=False), (before + places) // FLOOR - before // FLOOR)
    # Each class counts its own places to take turns among its owners. If both counted all places,
    # a period in the load could favour one owner for ever.
    chosen = _shared_out(interactive, places - floor, served.interactive)
    return chosen + _shared_out(bulk, places - len(chosen), served.bulk)


def _shared_out(groups: Sequence[ChainGroup], places: int, served: int) -> list[Hashable]:
    """Take one chain of each owner in turn, beginning where the `served` places left off.

    Each owner offers the job with the least work left first.
    """
    if not groups or not places:
        return []
    by_owner: dict[str, list[ChainGroup]] = defaultdict(list)
    for group in groups:
        by_owner[group.owner].append(group)
    offers = [_shortest_first(by_owner[owner]) for owner in _rotated(sorted(by_owner), served)]
    rounds = chain.from_iterable(zip_longest(*offers, fillvalue=_NOBODY))
    return list(islice((c for c in rounds if c is not _NOBODY), places))


_NOBODY = object()


def _shortest_first(groups: Sequence[ChainGroup]) -> Iterator[Hashable]:
    """Chain the groups' chains; a job's first images come first, so that they finish first."""
    by_rows_left = sorted(groups, key=lambda group: group.rows_left)
    return chain.from_iterable(group.chains for group in by_rows_left)


def _rotated(owners: list[str], by: int) -> list[str]:
    start = by % len(owners) if owners else 0
    return owners[start:] + owners[:start]
