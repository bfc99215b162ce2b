"""The rule by which a worker takes shards, and what it holds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.jobs import make_recipe, make_shard
from tests.support.simulation import image_steps_by
from worker.jobs.domain import Priority, Shard
from worker.jobs.policy import HOLDS, OWNERS_AT_HAND, SHARDS_AT_HAND
from worker.jobs.worker_registry import Pace
from worker.process.load import AtHand, WorkerLoad, wanted_classes
from worker.process.shard_leases import Room

INTERACTIVE, BULK = Priority
NOTHING = AtHand()
# Batches of 64. In two seconds it runs 10,000 image-steps, or 2,000,000.
SLOW, FAST = Pace(0.0, 0.0002, 64), Pace(0.0, 0.000001, 64)
STEPS = 1000


def held(images: int, steps: int = STEPS, *owners: str, shards: int = SHARDS_AT_HAND) -> AtHand:
    return AtHand(images, images * steps, shards, frozenset(owners or ("ann",)))


def lacks(room: Room | None) -> bool:
    """Tell whether shards of any owner are taken."""
    return room is not None and bool(room.batch or room.image_steps or room.shards)


def filled_up(pace: Pace, shard_images: int, steps: int, capacity: int = 1024) -> int:
    """Return the interactive images that a worker takes of one owner."""
    shards = 0
    while lacks(
        wanted_classes(
            capacity, pace, held(shards * shard_images, steps, shards=shards), NOTHING
        ).get(INTERACTIVE)
    ):
        shards += 1
    return shards * shard_images


def test_a_slow_worker_takes_one_batch_and_a_fast_one_fills_its_pool() -> None:
    assert filled_up(SLOW, 1, STEPS) == 64
    assert filled_up(SLOW, 1, 5) == 1024 - 127, "five steps are little work"
    assert filled_up(FAST, 64, STEPS) == 1024 - 64, "the last place is for a bulk shard"


def test_a_slow_worker_has_a_few_large_shards_so_that_small_ones_join_them() -> None:
    assert filled_up(SLOW, 64, STEPS) == 64 * SHARDS_AT_HAND


def test_the_models_of_a_worker_share_its_time() -> None:
    for others_s, is_lacking in ((0.0, True), (1.9, True), (2.0, False)):
        rooms = wanted_classes(1024, SLOW, held(64, 1), NOTHING, others_s=others_s)
        assert lacks(rooms[INTERACTIVE]) is is_lacking


def test_a_worker_beside_an_idle_one_takes_no_more_than_a_batch() -> None:
    rooms = wanted_classes(1024, FAST, held(64, shards=1), NOTHING, is_lean=True)
    assert not lacks(rooms[INTERACTIVE])
    rooms = wanted_classes(1024, FAST, held(63, shards=1), NOTHING, is_lean=True)
    assert rooms[INTERACTIVE].batch == 1


def test_another_owner_has_a_place_when_one_has_filled_what_is_at_hand() -> None:
    room = wanted_classes(1024, SLOW, held(64), NOTHING)[INTERACTIVE]
    assert not lacks(room)
    assert (room.newcomers, room.owners) == (OWNERS_AT_HAND - 1, {"ann"})
    owners = [f"owner{n}" for n in range(OWNERS_AT_HAND)]
    assert INTERACTIVE not in wanted_classes(1024, SLOW, held(64, STEPS, *owners), NOTHING)


@pytest.mark.parametrize("capacity", [128, 192, 1024])
def test_bulk_work_has_a_place_however_many_interactive_shards_wait(capacity: int) -> None:
    interactive = filled_up(FAST, 64, STEPS, capacity)
    assert set(wanted_classes(capacity, FAST, held(interactive), NOTHING)) == {BULK}
    assert not wanted_classes(capacity, FAST, held(interactive), held(64)), "the pool is full"
    one_has_left = wanted_classes(capacity, FAST, held(interactive - 64), held(64))
    assert set(one_has_left) == {INTERACTIVE}, "the next place is for a job that somebody waits for"


@pytest.mark.parametrize(
    ("capacity", "bulk_shards"), [(64, 1), (127, 1), (191, 1), (192, 2), (256, 2)]
)
def test_bulk_work_leaves_room_for_a_job_that_somebody_waits_for(
    capacity: int, bulk_shards: int
) -> None:
    """A pool that holds one shard only is the exception."""
    bulk = 0
    while BULK in wanted_classes(capacity, FAST, NOTHING, held(bulk)):
        bulk += 64
    assert bulk == 64 * bulk_shards
    has_room = INTERACTIVE in wanted_classes(capacity, FAST, NOTHING, held(bulk))
    assert has_room == (capacity - bulk >= 64)


@pytest.mark.parametrize(("pace", "most"), [(SLOW, 64), (FAST, 64 * HOLDS)])
def test_bulk_work_is_taken_for_one_batch_or_two_of_a_fast_worker(pace: Pace, most: int) -> None:
    for bulk, is_wanted in ((most - 1, True), (most, False)):
        assert (BULK in wanted_classes(1024, pace, NOTHING, held(bulk))) is is_wanted


@pytest.mark.parametrize("capacity", [64, 127, 128, 192, 1024])
def test_the_room_of_both_classes_together_is_never_more_than_the_pool_has(capacity: int) -> None:
    for interactive in range(0, capacity + 1, 8):
        for bulk in range(0, capacity + 1 - interactive, 8):
            rooms = wanted_classes(capacity, FAST, held(interactive), held(bulk))
            assert all(
                64 <= room.images <= capacity - interactive - bulk for room in rooms.values()
            )


def backlog(seconds: float, count: int) -> list[Shard]:
    """Return interactive jobs that a SLOW worker runs for so long."""
    shard = make_shard(make_recipe(steps=100), count=count)
    jobs = round(seconds * SLOW.image_steps_per_s / (count * 100))
    return [replace(shard, job=f"j{number}") for number in range(jobs)]


@pytest.mark.parametrize("count", [1, 64])
@pytest.mark.parametrize(("times", "share"), [(1, 1 / 2), (3, 1 / 4), (1 / 4, 4 / 5)])
def test_a_late_worker_soon_has_its_share_of_a_backlog_by_its_pace(
    count: int, times: float, share: float
) -> None:
    """It starts 10 s later beside two minutes of work, with `times` as long a step."""
    first = {64: 64 * SLOW.image_s}
    late = {64: times * first[64]}
    done = image_steps_by(backlog(120, count), [(0, first), (10, late)], 15, 30)
    assert done[1] / sum(done) == pytest.approx(share, abs=0.02)


def test_the_load_counts_images_and_their_steps_by_model_and_class() -> None:
    load = WorkerLoad()
    shard = make_shard(make_recipe(steps=4), count=64, owner="ann")
    load.add(shard, 64)
    load.add(replace(shard, owner="bob"), 2)
    load.add(replace(shard, number=1), 64)  # bulk
    load.add(shard, -60)
    load.add(replace(shard, owner="bob"), -2)
    assert load.at_hand("tiny", INTERACTIVE) == AtHand(4, 16, 1, frozenset({"ann"}))
    assert load.images("tiny", BULK) == 64
    assert load.at_hand("another model", BULK) == NOTHING
