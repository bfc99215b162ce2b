"""The scheduler's choice: who is picked, and how places are shared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence

from hypothesis import given
from hypothesis import strategies as st

from worker.engine.scheduler import NOTHING_SERVED, ChainGroup, Served, pick
from worker.jobs.policy import FLOOR


def group(
    count: int, owner: str = "a", interactive: bool = True, rows_left: int = 10, job: str = ""
) -> ChainGroup:
    made = ChainGroup(job or owner, owner, interactive)
    for i in range(count):
        made.join((owner, interactive, made.job, i), rows_left)
    return made


many_groups = st.lists(
    st.builds(
        group,
        count=st.integers(1, 12),
        job=st.sampled_from("uvwxyz"),
        owner=st.sampled_from("abc"),
        interactive=st.booleans(),
        rows_left=st.integers(1, 1000),
    ),
    max_size=8,
    unique_by=lambda group: group.key,
)


def owner_of(chain: Hashable) -> str:
    return chain[0]


def picks(groups: Sequence[ChainGroup], places: Iterable[int]) -> Iterator[Hashable]:
    """Pick for some steps in which no chain finishes."""
    served = NOTHING_SERVED
    for count in places:
        chosen = pick(groups, count, served)
        served = served.plus(len(chosen), sum(interactive for _, interactive, *_ in chosen))
        yield from chosen


def run(groups: Sequence[ChainGroup], places: int, steps: int) -> Counter[str]:
    """Count the places that each owner gets."""
    return Counter(map(owner_of, picks(groups, [places] * steps)))


@given(
    many_groups, st.integers(1, 40), st.builds(Served, st.integers(0, 1000), st.integers(0, 1000))
)
def test_no_place_is_empty_while_chains_wait_and_no_chain_has_two(groups, places, served):
    chosen = pick(groups, places, served)
    assert len(chosen) == min(places, sum(len(group.chains) for group in groups))
    assert len(set(chosen)) == len(chosen)


@given(many_groups, st.lists(st.integers(1, 16), min_size=72, max_size=72))
def test_no_owner_starves_whatever_the_batch_sizes_are(groups, sizes):
    """Nine rounds of the floor serve every owner in each class that its chains wait in."""
    served = {chain[:2] for chain in picks(groups, sizes)}
    assert served == {(group.owner, group.interactive) for group in groups}


def test_owners_share_alike_whatever_they_have_waiting():
    shares = run([group(100, "a"), group(20, "b"), group(11, "c")], places=10, steps=30)
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
    groups = [group(64, f"owner {n}", interactive) for n in range(owners)]
    groups += [group(64, "other", not interactive)] * bulk
    shares = run(groups, places, steps=2 * owners)
    del shares["other"]
    assert len(shares) == owners or sum(shares.values()) < owners
    assert max(shares.values(), default=0) - min(shares.values(), default=0) <= 1


def test_an_owner_with_many_jobs_has_no_larger_share():
    groups = [group(4, "a", job=f"job {n}") for n in range(20)] + [group(80, "b")]
    shares = run(groups, places=8, steps=10)
    assert shares == {"a": 40, "b": 40}


def test_interactive_chains_go_first_and_bulk_keeps_its_floor():
    shares = run([group(100, "i"), group(100, "b", interactive=False)], places=32, steps=8)
    assert shares == {"i": 8 * 28, "b": 8 * 4}


def test_the_floor_is_kept_with_one_place_too():
    shares = run([group(5, "i"), group(5, "b", interactive=False)], places=1, steps=FLOOR)
    assert shares == {"i": FLOOR - 1, "b": 1}


def test_bulk_takes_what_interactive_leaves():
    shares = run([group(3, "i"), group(100, "b", interactive=False)], places=16, steps=1)
    assert shares == {"i": 3, "b": 13}


def test_the_job_with_the_least_work_left_goes_first():
    chosen = pick([group(50, job="big"), group(2, job="small")], 2)
    assert {chain[2] for chain in chosen} == {"small"}


def test_the_first_images_of_a_job_go_first():
    assert pick([group(9)], 3) == [("a", True, "a", i) for i in range(3)]
