from __future__ import annotations

import pytest

from app.records.eta import queue_place
from app.schemas.jobs import QueuePlace
from worker.jobs.policy import STRETCH
from worker.jobs.worker_registry import ModelInfo, Pace, WorkerInfo

FLAT = ModelInfo(
    "bf16", "pytorch", 0, {1: 0.1, 32: 0.1}
)  # a GPU: a step takes what it takes, whatever is in it
STEEP = ModelInfo("fp32", "pytorch", 2, {1: 0.01, 32: 0.32})  # a CPU


def worker(name: str, *models: str, model: ModelInfo = FLAT) -> WorkerInfo:
    return WorkerInfo(name, "cpu", dict.fromkeys(models, model), 1.0)


def found(
    own: int = 0,
    own_bulk: int = 0,
    count: int = 1,
    steps: int = 50,
    other_models: int = 0,
    **ahead: int,
) -> list[int]:
    """What QUEUE_PLACE answers, a job alone unless told otherwise: `urgent_smaller` is what of `urgent_work` comes first."""
    fields = (
        f"{group}_{name}"
        for group in ("interactive", "earlier", "later")
        for name in ("work", "smaller", "images", "owners")
    )
    classes = [ahead.pop(field, 0) for field in fields]
    beside = ahead.pop("beside", 0)
    assert not ahead
    return [0, own, own_bulk, count, steps, *classes, other_models, beside]


def seconds(answer: list[int], *workers: WorkerInfo) -> float:
    place = queue_place(answer, "tiny", workers or [worker("a", "tiny")])
    assert place
    assert place.eta_s is not None
    return place.eta_s


def test_there_is_no_estimate_far_back_in_the_queue_or_without_a_worker_that_has_the_model() -> (
    None
):
    assert queue_place([1000], "tiny", [worker("a", "tiny")]) == QueuePlace(
        position=1000, eta_s=None
    )
    assert queue_place(found(50), "tiny", [worker("a", "other")]) == QueuePlace(
        position=0, eta_s=None
    )


def test_an_image_takes_its_steps_one_after_the_other_however_fast_full_batches_are() -> None:
    assert seconds(found(50)) == 5.0
    assert seconds(found(50), worker("a", "tiny", model=STEEP)) == 0.5


def test_a_step_takes_longer_with_others_in_it_but_with_bulk_work_no_longer_than_the_engine_allows() -> (
    None
):
    steep = worker("a", "tiny", model=STEEP)
    assert seconds(
        found(50, urgent_smaller=700, urgent_work=750, urgent_images=15), steep
    ) == pytest.approx(50 * 0.16)
    assert seconds(found(50, beside=1), steep) == pytest.approx(50 * 0.01 * STRETCH, abs=0.1)


def test_workers_share_jobs_but_a_part_of_one_is_in_one_worker() -> None:
    two = [worker(name, "tiny") for name in "ab"]
    assert seconds(
        found(64 * 50, urgent_smaller=64000, urgent_work=64000, count=64), *two
    ) == pytest.approx((64000 + 3200) / 640, abs=0.1)
    assert seconds(found(64 * 50, count=64), *two) == 10.0


def test_owners_share_equally_whatever_they_posted() -> None:
    assert seconds(found(3200, urgent_work=320_000, urgent_owners=1, count=64)) == 20.0
    assert seconds(found(3200, urgent_work=3200, urgent_owners=50, count=64)) == 20.0


def test_bulk_work_waits_for_the_interactive_but_keeps_one_place_in_eight() -> None:
    assert seconds(found(own_bulk=3200, urgent_work=6400, count=64)) == 30.0
    assert seconds(found(own_bulk=3200, urgent_work=640_000, count=64)) == 80.0


def test_small_bulk_work_overtakes_what_workers_hold_beside_it_but_not_what_fills_them() -> None:
    own = {"own_bulk": 1600, "count": 32}
    assert seconds(found(**own, earlier_work=3200, earlier_images=32)) == 5.0
    assert (
        seconds(found(**own, earlier_work=6400, earlier_images=64)) == 5.0 + 10.0
    )  # half of it has to make room
    assert seconds(found(**own, earlier_work=64_000, earlier_images=640)) == pytest.approx(5 + 190)


def test_smaller_bulk_work_comes_first_whenever_it_was_posted_and_owners_share() -> None:
    own = {"own_bulk": 6400, "count": 64, "steps": 100}
    assert seconds(found(**own, later_work=3200, later_smaller=3200, later_images=64)) == 30.0
    assert seconds(found(**own, later_work=64_000, later_images=640)) == 20.0
    assert seconds(found(**own, later_work=64_000, later_images=640, later_owners=1)) == 40.0


def test_a_bulk_image_steps_with_what_is_beside_it_and_with_somebody_waiting_in_swift_steps() -> (
    None
):
    steep = worker("a", "tiny", model=STEEP)
    assert seconds(found(own_bulk=50), steep) == 0.5
    assert seconds(found(own_bulk=50, later_work=6400, later_images=15), steep) == pytest.approx(
        50 * 0.16
    )
    waiting = found(
        own_bulk=200, steps=200, urgent_work=50, urgent_images=1, later_work=6200, later_images=31
    )
    assert seconds(waiting, steep) == pytest.approx(200 * 0.01 * STRETCH, abs=0.6)


def test_models_take_turns() -> None:
    assert seconds(found(own_bulk=3200, other_models=640_000, count=64)) == 20.0
    assert seconds(found(own_bulk=3200, other_models=320, count=64)) == 11.0


@pytest.mark.parametrize("slowed", [1, 3])
def test_a_pace_is_the_line_through_the_smallest_and_the_best_batch(slowed: int) -> None:
    pace = Pace.from_seconds({1: 0.02, 4: 0.05, 16: 0.17, 64: 0.9}, slowed)
    assert [pace.step_s(images) for images in (1, 16, 64)] == pytest.approx(
        [0.02 * slowed, 0.17 * slowed, 0.17 * slowed]
    )
    assert Pace.from_seconds({2: 0.5}).step_s(1) == 0.5
