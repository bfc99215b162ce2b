from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence

from hypothesis import given
from hypothesis import strategies as st

from worker.engine.scheduler import NOTHING_SERVED, ChainGroup, Served, pick
from worker.jobs.policy import FLOOR


def line(
    count: int, owner: str = "a", interactive: bool = True, rows_left: int = 10, job: str = ""
) -> ChainGroup:
    made = ChainGroup(job or owner, owner, interactive)
    for i in range(count):
        made.join((owner, interactive, made.job, i), rows_left)
    return made


lines_of_many = st.lists(
    st.builds(
        line,
        count=st.integers(1, 12),
        job=st.sampled_from("uvwxyz"),
        owner=st.sampled_from("abc"),
        interactive=st.booleans(),
        rows_left=st.integers(1, 1000),
    ),
    max_size=8,
    unique_by=lambda line: (line.job, line.owner, line.interactive),
)


def owner_of(chain: Hashable) -> str:
    return chain[0]


def picks(lines: Sequence[ChainGroup], places: Iterable[int]) -> Iterator[Hashable]:
    """Those of some turns in which nobody finishes."""
    given = NOTHING_SERVED
    for count in places:
        chosen = pick(lines, count, given)
        given = given.plus(len(chosen), sum(interactive for _, interactive, *_ in chosen))
        yield from chosen


def run(lines: Sequence[ChainGroup], places: int, turns: int) -> Counter[str]:
    """Places given to each owner."""
    return Counter(map(owner_of, picks(lines, [places] * turns)))


@given(
    lines_of_many, st.integers(1, 40), st.builds(Served, st.integers(0, 1000), st.integers(0, 1000))
)
def test_no_place_stays_empty_while_somebody_waits_and_none_is_given_twice(
    lines, places, given_before
):
    chosen = pick(lines, places, given_before)
    assert len(chosen) == min(places, sum(len(line.chains) for line in lines))
    assert len(set(chosen)) == len(chosen)


@given(lines_of_many, st.lists(st.integers(1, 16), min_size=72, max_size=72))
def test_nobody_starves_whatever_the_sizes_of_the_batches(lines, sizes):
    """While nobody finishes, every owner is served in each class that it waits in within nine rounds of the floor."""
    served = {chain[:2] for chain in picks(lines, sizes)}
    assert served == {(line.owner, line.interactive) for line in lines}


def test_owners_share_alike_whatever_they_have_waiting():
    shares = run([line(100, "a"), line(20, "b"), line(11, "c")], places=10, turns=30)
    assert max(shares.values()) - min(shares.values()) <= 30 // 3


@given(
    owners=st.integers(1, 60),
    places=st.integers(1, 64),
    interactive=st.booleans(),
    bulk=st.booleans(),
)
def test_over_many_steps_owners_get_the_same_however_many_they_are(
    owners, places, interactive, bulk
):
    lines = [line(64, f"owner {n}", interactive) for n in range(owners)] + [
        line(64, "other", not interactive)
    ] * bulk
    shares = run(lines, places, turns=2 * owners)
    del shares["other"]
    assert len(shares) == owners or sum(shares.values()) < owners
    assert max(shares.values(), default=0) - min(shares.values(), default=0) <= 1


def test_an_owner_with_many_jobs_has_no_larger_share():
    lines = [line(4, "a", job=f"job {n}") for n in range(20)] + [line(80, "b")]
    shares = run(lines, places=8, turns=10)
    assert shares == {"a": 40, "b": 40}


def test_interactive_chains_go_first_and_bulk_keeps_its_floor():
    shares = run([line(100, "i"), line(100, "b", interactive=False)], places=32, turns=8)
    assert shares == {"i": 8 * 28, "b": 8 * 4}


def test_the_floor_is_kept_with_one_place_too():
    shares = run([line(5, "i"), line(5, "b", interactive=False)], places=1, turns=FLOOR)
    assert shares == {"i": FLOOR - 1, "b": 1}


def test_bulk_takes_what_interactive_leaves():
    assert run([line(3, "i"), line(100, "b", interactive=False)], places=16, turns=1) == {
        "i": 3,
        "b": 13,
    }


def test_the_job_with_the_least_work_left_goes_first():
    assert {chain[2] for chain in pick([line(50, job="big"), line(2, job="small")], 2)} == {"small"}


def test_the_first_images_of_a_job_go_first():
    assert pick([line(9)], 3) == [("a", True, "a", i) for i in range(3)]
