from __future__ import annotations

import pytest

from app.estimate import alive, queue_place
from app.schemas import QueuePlace
from worker.contract import STRETCH
from worker.info import Pace, ServedModel, WorkerInfo

FLAT = ServedModel("bf16", 0, {1: 0.1, 32: 0.1})  # a GPU: a step takes what it takes, whatever is in it
STEEP = ServedModel("fp32", 2, {1: 0.01, 32: 0.32})  # a CPU


def worker(name: str, *models: str, until: float = 99, model: ServedModel = FLAT) -> WorkerInfo:
    return WorkerInfo(name, "cpu", dict.fromkeys(models, model), 1.0, until)


def found(own: int = 0, own_bulk: int = 0, count: int = 1, steps: int = 50, **ahead: int) -> list[int]:
    """What QUEUE_PLACE answers, a job alone unless told otherwise."""
    names = ("smaller", "urgent", "patient", "other_models", "images", "owners", "beside")
    return [0, own, own_bulk, *(ahead.get(name, 0) for name in names), count, steps]


def seconds(answer: list[int], *workers: WorkerInfo) -> float:
    place = queue_place(answer, "tiny", workers or [worker("a", "tiny")])
    assert place
    assert place.eta_s is not None
    return place.eta_s


def test_workers_that_outlived_their_word_are_not_alive() -> None:
    infos = [worker(name, until=until).to_json().encode() for name, until in [("b", 11), ("dead", 10), ("a", 12)]]
    assert [info.name for info in alive(infos, now=10)] == ["a", "b"]


def test_what_a_worker_says_arrives_as_it_was_said() -> None:
    said = worker("a", "tiny", "other")
    assert alive([said.to_json().encode()], now=1) == [said]


def test_there_is_no_estimate_far_back_in_the_queue_or_without_a_worker_that_has_the_model() -> None:
    assert queue_place([1000], "tiny", [worker("a", "tiny")]) == QueuePlace(position=1000, eta_s=None)
    assert queue_place(found(50), "tiny", [worker("a", "other")]) == QueuePlace(position=0, eta_s=None)


def test_an_image_takes_its_steps_one_after_the_other_however_fast_full_batches_are() -> None:
    assert seconds(found(50)) == 5.0
    assert seconds(found(50), worker("a", "tiny", model=STEEP)) == 0.5


def test_a_step_takes_longer_with_others_in_it_but_with_bulk_work_no_longer_than_the_engine_allows() -> None:
    steep = worker("a", "tiny", model=STEEP)
    assert seconds(found(50, smaller=700, urgent=750, images=15), steep) == pytest.approx(50 * 0.16)
    assert seconds(found(50, beside=1), steep) == pytest.approx(50 * 0.01 * STRETCH, abs=0.1)


def test_workers_share_jobs_but_a_part_of_one_is_in_one_worker() -> None:
    two = [worker(name, "tiny") for name in "ab"]
    assert seconds(found(64 * 50, smaller=64000, urgent=64000, count=64), *two) == pytest.approx((64000 + 3200) / 640, abs=0.1)
    assert seconds(found(64 * 50, count=64), *two) == 10.0


def test_owners_share_equally_whatever_they_posted() -> None:
    assert seconds(found(3200, urgent=320_000, owners=1, count=64)) == 20.0
    assert seconds(found(3200, urgent=3200, owners=50, count=64)) == 20.0


def test_bulk_work_waits_for_the_interactive_but_keeps_one_place_in_eight() -> None:
    assert seconds(found(own_bulk=3200, urgent=6400, count=64)) == 30.0
    assert seconds(found(own_bulk=3200, urgent=640_000, count=64)) == 80.0


def test_models_take_turns() -> None:
    assert seconds(found(own_bulk=3200, other_models=640_000, count=64)) == 20.0
    assert seconds(found(own_bulk=3200, other_models=320, count=64)) == 11.0


@pytest.mark.parametrize("slowed", [1, 3])
def test_a_pace_is_the_line_through_the_smallest_and_the_best_batch(slowed: int) -> None:
    pace = Pace.of({1: 0.02, 4: 0.05, 16: 0.17, 64: 0.9}, slowed)
    assert [pace.step_s(images) for images in (1, 16, 64)] == pytest.approx([0.02 * slowed, 0.17 * slowed, 0.17 * slowed])
    assert Pace.of({2: 0.5}).step_s(1) == 0.5
