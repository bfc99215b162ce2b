"""Which chains run next: pure Python on plain numbers, asked before every step. Knows no tensors.

Classes first, then equal shares between owners, then the job with the least work left; a floor keeps the lower class moving.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest

FLOOR = 8  # the lower class has one place in this many, while it waits


@dataclass(slots=True)
class Candidate:
    """A chain as the scheduler sees it. `urgent` is the upper class; `rows_left` is what it still has to run."""

    chain: Hashable
    job: Hashable
    owner: str
    urgent: bool
    rows_left: int


def pick(candidates: Sequence[Candidate], places: int, turn: int = 0) -> list[Candidate]:
    """At most `places` of them. `turn` counts the steps, so that what cannot be shared in one is shared over many."""
    if len(candidates) <= places:
        return list(candidates)
    urgent = [c for c in candidates if c.urgent]
    patient = [c for c in candidates if not c.urgent]
    paid, due = places * turn // FLOOR, places * (turn + 1) // FLOOR  # places that the floor has given, and is to have given
    floor = min(len(patient), due - paid)
    # each class goes round its owners by its own places: by turns, a period of theirs could pass an owner by for ever
    chosen = _shared_out(urgent, places - floor, places * turn - paid)
    return chosen + _shared_out(patient, places - len(chosen), paid)


def _shared_out(candidates: Iterable[Candidate], places: int, given: int) -> list[Candidate]:
    """Owners take one chain each in turn, from where the `given` places so far left off; each offers its shortest job first."""
    by_owner: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        by_owner[candidate.owner].append(candidate)
    offers = [_shortest_first(by_owner[owner]) for owner in _rotated(sorted(by_owner), given)]
    rounds = chain.from_iterable(zip_longest(*offers))
    return list(islice((c for c in rounds if c is not None), places))


def _shortest_first(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Stable: chains of one job stay in the order in which they came, so that its first images finish first."""
    left: dict[Hashable, int] = defaultdict(int)
    for candidate in candidates:
        left[candidate.job] += candidate.rows_left
    return sorted(candidates, key=lambda c: left[c.job])


def _rotated(owners: list[str], by: int) -> list[str]:
    start = by % len(owners) if owners else 0
    return owners[start:] + owners[:start]
