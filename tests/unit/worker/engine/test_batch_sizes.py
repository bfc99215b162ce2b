"""The choice of a batch size, against the seconds that all sizes take."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.engine.batch_sizes import BatchSizes
from worker.jobs.policy import STRETCH

# milliseconds, measured on two cores in bf16
SECONDS = {1: 10, 2: 12, 4: 17, 8: 24, 16: 36, 32: 58, 64: 103}


def seconds_for_all(batch_sizes: BatchSizes, chains: int) -> float:
    """Add up the steps that give each chain one, as the batch sizes choose."""
    total = 0.0
    while chains:
        places = batch_sizes.places(0, chains)
        total += batch_sizes.seconds[batch_sizes.size_for(places)]
        chains -= places
    return total


@pytest.mark.parametrize(
    ("waiting", "places"),
    [(1, 1), (2, 2), (3, 3), (5, 5), (16, 16), (20, 16), (40, 32), (64, 64), (65, 64)],
)
def test_the_places_chosen_step_all_chains_soonest(waiting, places):
    assert BatchSizes(SECONDS).places(0, waiting) == places


@given(
    st.dictionaries(st.sampled_from([1, 2, 4, 8, 16]), st.floats(0.001, 1), min_size=1),
    st.integers(1, 24),
)
def test_no_other_set_of_batches_is_faster(seconds, chains):
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


def test_very_many_chains_step_in_the_batch_that_does_most_a_second():
    assert BatchSizes({1: 1, 8: 2, 16: 5}).places(0, 1000) == 8


def test_bulk_work_stretches_an_interactive_step_so_far_and_no_further():
    batch_sizes = BatchSizes(SECONDS)
    for interactive in (1, 2, 5, 16, 64):
        without_bulk = SECONDS[batch_sizes.size_for(interactive)]
        with_bulk = SECONDS[batch_sizes.size_for(batch_sizes.places(interactive, 1000))]
        assert with_bulk <= max(without_bulk, STRETCH * SECONDS[1])
    assert batch_sizes.places(1, 1000) == 8


def test_interactive_work_alone_has_no_such_limit():
    assert BatchSizes(SECONDS).places(1, 0) == 1
    assert BatchSizes(SECONDS).places(40, 0) == 32


def test_no_place_is_chosen_when_no_chain_waits():
    assert BatchSizes(SECONDS).places(0, 0) == 0
