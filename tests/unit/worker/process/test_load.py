"""The rule by which a worker takes shards, and what it holds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.jobs import make_recipe, make_shard
from worker.jobs.domain import Priority
from worker.process.load import WorkerLoad, wanted_classes

INTERACTIVE, BULK = Priority
LOW_WATER = 128


@pytest.mark.parametrize("capacity", [128, 192, 1024])
def test_bulk_work_has_a_place_however_many_interactive_shards_wait(capacity):
    interactive = 0
    while INTERACTIVE in wanted_classes(capacity, interactive, 0, LOW_WATER):
        interactive += 64
    assert set(wanted_classes(capacity, interactive, 0, LOW_WATER)) == {BULK}
    assert not wanted_classes(capacity, interactive, 64, LOW_WATER), "the pool is full"
    one_has_left = wanted_classes(capacity, interactive - 64, 64, LOW_WATER)
    assert set(one_has_left) == {INTERACTIVE}, "the next place is for a job that somebody waits for"


@pytest.mark.parametrize(
    ("capacity", "bulk_shards"), [(64, 1), (127, 1), (191, 1), (192, 2), (256, 2)]
)
def test_bulk_work_leaves_room_for_a_job_that_somebody_waits_for(capacity, bulk_shards):
    """A pool that holds one shard only is the exception."""
    bulk = 0
    while BULK in wanted_classes(capacity, 0, bulk, LOW_WATER):
        bulk += 64
    assert bulk == 64 * bulk_shards
    has_room = INTERACTIVE in wanted_classes(capacity, 0, bulk, LOW_WATER)
    assert has_room == (capacity - bulk >= 64)


@pytest.mark.parametrize(("bulk", "is_wanted"), [(127, True), (128, False)])
def test_bulk_work_is_taken_below_the_low_water_only(bulk, is_wanted):
    assert (BULK in wanted_classes(1024, 0, bulk, LOW_WATER)) is is_wanted


@pytest.mark.parametrize("capacity", [64, 127, 128, 192, 1024])
def test_the_room_of_both_classes_together_is_never_more_than_the_pool_has(capacity):
    for interactive in range(0, capacity + 1, 8):
        for bulk in range(0, capacity + 1 - interactive, 8):
            rooms = wanted_classes(capacity, interactive, bulk, LOW_WATER)
            assert all(64 <= room <= capacity - interactive - bulk for room in rooms.values())


def test_the_load_counts_images_by_model_and_class():
    load = WorkerLoad()
    shard = make_shard(make_recipe(), count=64, owner="ann")
    load.add(shard, 64)
    load.add(replace(shard, owner="bob"), 2)
    load.add(replace(shard, number=1), 64)  # bulk
    load.add(shard, -60)
    load.add(replace(shard, owner="bob"), -2)
    assert load.images("tiny", INTERACTIVE) == 4
    assert load.images("tiny", BULK) == 64
    assert load.images("another model", BULK) == 0
