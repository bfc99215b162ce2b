"""Which chains run next: pure Python on plain numbers, asked before every step. Knows no tensors.

Classes first, then equal shares between owners, then the job with the least work left; a floor keeps the lower class moving.
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
    """The chains of one job and class, in the order in which they came. `rows_left` is what all of them still have to run."""

    job: Hashable
    owner: str
    interactive: bool
    rows_left: int = 0
    chains: dict[Hashable, None] = field(default_factory=dict)

    @property
    def key(self) -> Hashable:
        return self.job, self.owner, self.interactive

    def join(self, chain: Hashable, rows: int) -> None:
        self.chains[chain] = None
        self.rows_left += rows

    def leave(self, chain: Hashable, rows: int) -> None:
        del self.chains[chain]
        self.rows_left -= rows


class Served(NamedTuple):
    """Places that all steps before have given to each class: what one step cannot share, many do."""

    interactive: int = 0
    bulk: int = 0

    def plus(self, picked: int, interactive: int) -> Served:
        """After a step of `picked` chains, of which so many are interactive."""
        return Served(self.interactive + interactive, self.bulk + picked - interactive)


NOTHING_SERVED = Served()


def waiting(lines: Iterable[ChainGroup], interactive: bool) -> int:
    return sum(len(line.chains) for line in lines if line.interactive is interactive)


def pick(
    lines: Sequence[ChainGroup], places: int, given: Served = NOTHING_SERVED
) -> list[Hashable]:
    """At most `places` chains, the interactive ones first."""
    interactive, bulk = (
        [line for line in lines if line.interactive is kind] for kind in (True, False)
    )
    before = sum(given)
    floor = min(waiting(bulk, interactive=False), (before + places) // FLOOR - before // FLOOR)
    # each class goes round its owners by its own places: by all, or by turns, a period of theirs could favour an owner for ever
    chosen = _shared_out(interactive, places - floor, given.interactive)
    return chosen + _shared_out(bulk, places - len(chosen), given.bulk)


def _shared_out(lines: Sequence[ChainGroup], places: int, given: int) -> list[Hashable]:
    """Owners take one chain each in turn, from where the `given` places so far left off; each offers its shortest job first."""
    if not lines or not places:
        return []
    by_owner: dict[str, list[ChainGroup]] = defaultdict(list)
    for line in lines:
        by_owner[line.owner].append(line)
    offers = [_shortest_first(by_owner[owner]) for owner in _rotated(sorted(by_owner), given)]
    rounds = chain.from_iterable(zip_longest(*offers, fillvalue=_NOBODY))
    return list(islice((c for c in rounds if c is not _NOBODY), places))


_NOBODY = object()


def _shortest_first(lines: Sequence[ChainGroup]) -> Iterator[Hashable]:
    """A job's first images come first, so that they finish first."""
    return chain.from_iterable(
        line.chains for line in sorted(lines, key=lambda line: line.rows_left)
    )


def _rotated(owners: list[str], by: int) -> list[str]:
    start = by % len(owners) if owners else 0
    return owners[start:] + owners[:start]
