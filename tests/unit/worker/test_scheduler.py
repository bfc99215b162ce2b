from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from worker.scheduler import FLOOR, Candidate, pick

candidates = st.lists(
    st.builds(
        Candidate,
        chain=st.integers(),
        job=st.integers(0, 5),
        owner=st.sampled_from("abc"),
        urgent=st.booleans(),
        rows_left=st.integers(1, 1000),
    ),
    max_size=60,
    unique_by=lambda c: c.chain,
)


def chains(count: int, owner: str = "a", urgent: bool = True, rows_left: int = 10, job: object = None) -> list[Candidate]:
    return [Candidate((owner, urgent, job, i), job or owner, owner, urgent, rows_left) for i in range(count)]


def run(waiting: list[Candidate], places: int, turns: int) -> Counter[str]:
    """Places given to each owner over some turns in which nobody finishes."""
    return Counter(c.owner for turn in range(turns) for c in pick(waiting, places, turn))


@given(candidates, st.integers(1, 40), st.integers(0, 100))
def test_no_place_stays_empty_while_somebody_waits_and_none_is_given_twice(waiting, places, turn):
    chosen = pick(waiting, places, turn)
    assert len(chosen) == min(places, len(waiting))
    assert len({c.chain for c in chosen}) == len(chosen)


@given(candidates, st.integers(1, 16))
def test_nobody_starves(waiting, places):
    """While nobody finishes, every owner is served in each class that it waits in within three rounds of the floor."""
    served = {(c.owner, c.urgent) for turn in range(3 * FLOOR * 3) for c in pick(waiting, places, turn)}
    assert served == {(c.owner, c.urgent) for c in waiting}


def test_owners_share_alike_whatever_they_have_waiting():
    shares = run(chains(100, "a") + chains(20, "b") + chains(11, "c"), places=10, turns=30)
    assert max(shares.values()) - min(shares.values()) <= 30 // 3


def test_interactive_chains_go_first_and_bulk_keeps_its_floor():
    waiting = chains(100, "i") + chains(100, "b", urgent=False)
    shares = run(waiting, places=32, turns=8)
    assert shares == {"i": 8 * 28, "b": 8 * 4}


def test_the_floor_is_kept_with_one_place_too():
    shares = run(chains(5, "i") + chains(5, "b", urgent=False), places=1, turns=FLOOR)
    assert shares == {"i": FLOOR - 1, "b": 1}


def test_bulk_takes_what_interactive_leaves():
    waiting = chains(3, "i") + chains(100, "b", urgent=False)
    assert run(waiting, places=16, turns=1) == {"i": 3, "b": 13}


def test_the_job_with_the_least_work_left_goes_first():
    small, big = chains(2, job="small"), chains(50, job="big")
    assert {c.job for c in pick(big + small, 2)} == {"small"}
