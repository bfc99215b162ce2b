from __future__ import annotations

import pytest

from app.records.eta import OthersWork, QueuedWork
from worker.jobs.policy import STRETCH
from worker.jobs.worker_registry import ModelInfo, Pace, WorkerInfo

# A GPU: a step takes the same time whatever is in it.
FLAT = ModelInfo("bf16", "pytorch", 0, {1: 0.1, 32: 0.1})
# A CPU: a step takes as long as it has images.
STEEP = ModelInfo("fp32", "pytorch", 2, {1: 0.01, 32: 0.32})


def worker(name: str, *models: str, model: ModelInfo = FLAT) -> WorkerInfo:
    return WorkerInfo(name, "cpu", dict.fromkeys(models, model), 1.0)


def queued(
    own: int = 0,
    own_bulk: int = 0,
    count: int = 1,
    steps: int = 50,
    other_models: int = 0,
    **others: int,
) -> QueuedWork:
    """Make a job that is alone, but for the work in `others`.

    `interactive_smaller` is the part of `interactive_work` that comes first, and so on.
    """
    interactive, earlier, later = (
        OthersWork(*(others.pop(f"{group}_{name}", 0) for name in OthersWork.__slots__))
        for group in ("interactive", "earlier", "later")
    )
    beside = bool(others.pop("beside", 0))
    assert not others
    return QueuedWork(
        own, own_bulk, count, steps, interactive, earlier, later, other_models, beside
    )


def seconds(work: QueuedWork, *workers: WorkerInfo) -> float:
    workers = workers or (worker("a", "tiny"),)
    return round(work.seconds([worker.pace("tiny") for worker in workers]), 1)


def test_an_image_takes_its_steps_one_after_the_other_however_fast_full_batches_are() -> None:
    assert seconds(queued(50)) == 5.0
    assert seconds(queued(50), worker("a", "tiny", model=STEEP)) == 0.5


def test_other_images_slow_a_step_but_bulk_images_only_as_far_as_the_engine_allows() -> None:
    steep = worker("a", "tiny", model=STEEP)
    others = queued(50, interactive_smaller=700, interactive_work=750, interactive_images=15)
    assert seconds(others, steep) == pytest.approx(50 * 0.16)
    assert seconds(queued(50, beside=1), steep) == pytest.approx(50 * 0.01 * STRETCH, abs=0.1)


def test_workers_share_jobs_but_a_part_of_one_is_in_one_worker() -> None:
    two = [worker(name, "tiny") for name in "ab"]
    much = queued(64 * 50, interactive_smaller=64000, interactive_work=64000, count=64)
    assert seconds(much, *two) == pytest.approx((64000 + 3200) / 640, abs=0.1)
    assert seconds(queued(64 * 50, count=64), *two) == 10.0


def test_owners_share_equally_whatever_they_posted() -> None:
    assert seconds(queued(3200, interactive_work=320_000, interactive_owners=1, count=64)) == 20.0
    assert seconds(queued(3200, interactive_work=3200, interactive_owners=50, count=64)) == 20.0


def test_bulk_work_waits_for_the_interactive_but_keeps_one_place_in_eight() -> None:
    assert seconds(queued(own_bulk=3200, interactive_work=6400, count=64)) == 30.0
    assert seconds(queued(own_bulk=3200, interactive_work=640_000, count=64)) == 80.0


def test_small_bulk_work_overtakes_what_workers_hold_but_not_what_fills_them() -> None:
    own = {"own_bulk": 1600, "count": 32}
    assert seconds(queued(**own, earlier_work=3200, earlier_images=32)) == 5.0
    half_has_to_make_room = queued(**own, earlier_work=6400, earlier_images=64)
    assert seconds(half_has_to_make_room) == 5.0 + 10.0
    assert seconds(queued(**own, earlier_work=64_000, earlier_images=640)) == pytest.approx(5 + 190)


def test_smaller_bulk_work_comes_first_whenever_it_was_posted_and_owners_share() -> None:
    own = {"own_bulk": 6400, "count": 64, "steps": 100}
    assert seconds(queued(**own, later_work=3200, later_smaller=3200, later_images=64)) == 30.0
    assert seconds(queued(**own, later_work=64_000, later_images=640)) == 20.0
    assert seconds(queued(**own, later_work=64_000, later_images=640, later_owners=1)) == 40.0


def test_a_bulk_image_is_slowed_by_others_but_less_while_interactive_work_waits() -> None:
    steep = worker("a", "tiny", model=STEEP)
    assert seconds(queued(own_bulk=50), steep) == 0.5
    beside_others = queued(own_bulk=50, later_work=6400, later_images=15)
    assert seconds(beside_others, steep) == pytest.approx(50 * 0.16)
    waiting = queued(
        own_bulk=200,
        steps=200,
        interactive_work=50,
        interactive_images=1,
        later_work=6200,
        later_images=31,
    )
    assert seconds(waiting, steep) == pytest.approx(200 * 0.01 * STRETCH, abs=0.6)


def test_models_take_turns() -> None:
    assert seconds(queued(own_bulk=3200, other_models=640_000, count=64)) == 20.0
    assert seconds(queued(own_bulk=3200, other_models=320, count=64)) == 11.0


@pytest.mark.parametrize("slowed", [1, 3])
def test_a_pace_is_the_line_through_the_smallest_and_the_best_batch(slowed: int) -> None:
    pace = Pace.fit({1: 0.02, 4: 0.05, 16: 0.17, 64: 0.9}, slowed)
    taken = [pace.step_s(images) for images in (1, 16, 64)]
    assert taken == pytest.approx([0.02 * slowed, 0.17 * slowed, 0.17 * slowed])
    assert Pace.fit({2: 0.5}).step_s(1) == 0.5
