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


def test_an_owners_limit_shrinks_with_the_room_that_is_left():
    limits = [wanted_classes(1024, held, 64, LOW_WATER)[INTERACTIVE] for held in (0, 448, 832, 896)]
    assert [limit.most for limit in limits] == [896, 448, 64, 64]
    assert [limit.small for limit in limits] == [56, 28, 4, 0]


def test_the_load_counts_images_by_model_class_and_owner():
    load = WorkerLoad()
    shard = make_shard(make_recipe(), count=64, owner="ann")
    load.add(shard, 64)
    load.add(replace(shard, owner="bob"), 2)
    load.add(replace(shard, number=1), 64)  # bulk
    load.add(shard, -60)
    load.add(replace(shard, owner="bob"), -2)
    assert load.interactive_by_owner() == {"ann": 4}
    assert load.images("tiny", INTERACTIVE) == 4
    assert load.images("tiny", BULK) == 64
    assert load.images("another model", BULK) == 0
