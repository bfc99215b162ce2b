from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.engine.batch_sizes import BatchSizes
from worker.jobs.policy import STRETCH

SECONDS = {1: 10, 2: 12, 4: 17, 8: 24, 16: 36, 32: 58, 64: 103}  # measured in ms, two cores, bf16


def seconds_for_all(batch_sizes: BatchSizes, chains: int) -> float:
    """What it takes to give each of them one step, as the batch_sizes choose."""
    total = 0.0
    while chains:
        places = batch_sizes.places(0, chains)
        total += batch_sizes.seconds[batch_sizes.holding(places)]
        chains -= places
    return total


@pytest.mark.parametrize(
    ("waiting", "places"),
    [(1, 1), (2, 2), (3, 3), (5, 5), (16, 16), (20, 16), (40, 32), (64, 64), (65, 64)],
)
def test_as_many_take_the_step_as_gets_all_of_them_on_soonest(waiting, places):
    assert BatchSizes(SECONDS).places(0, waiting) == places


@given(
    st.dictionaries(st.sampled_from([1, 2, 4, 8, 16]), st.floats(0.001, 1), min_size=1),
    st.integers(1, 24),
)
def test_no_other_batches_would_have_been_faster(seconds, chains):
    batch_sizes = BatchSizes(seconds)
    if chains > 2 * batch_sizes.largest:
        return
    sets = (
        batches
        for n in range(1, chains // min(seconds) + 2)
        for batches in itertools.combinations_with_replacement(seconds, n)
        if n <= 4 and sum(batches) >= chains
    )
    best = min((sum(seconds[size] for size in batches) for batches in sets), default=float("inf"))
    assert seconds_for_all(batch_sizes, chains) <= best * (1 + 1e-9)


def test_of_very_many_the_batch_that_does_most_a_second_takes_the_step():
    assert BatchSizes({1: 1, 8: 2, 16: 5}).places(0, 1000) == 8


def test_beside_bulk_work_an_urgent_step_is_stretched_so_far_and_no_further():
    batch_sizes = BatchSizes(SECONDS)
    for interactive in (1, 2, 5, 16, 64):
        without_bulk = SECONDS[batch_sizes.holding(interactive)]
        assert SECONDS[batch_sizes.holding(batch_sizes.places(interactive, 1000))] <= max(
            without_bulk, STRETCH * SECONDS[1]
        )
    assert batch_sizes.places(1, 1000) == 8


def test_urgent_work_alone_is_not_held_to_that():
    assert BatchSizes(SECONDS).places(1, 0) == 1
    assert BatchSizes(SECONDS).places(40, 0) == 32


def test_with_nobody_waiting_nobody_is_picked():
    assert BatchSizes(SECONDS).places(0, 0) == 0
