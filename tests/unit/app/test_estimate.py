from __future__ import annotations

import json
from dataclasses import asdict

from app.estimate import alive, queue_place
from app.schemas import QueuePlace
from worker.contract import WorkerInfo


def worker(name: str, rate: float, until: float, *models: str) -> WorkerInfo:
    return WorkerInfo(name, models, "cpu", "fp32", (2,), rate, until)


def test_workers_that_outlived_their_word_are_not_alive() -> None:
    infos = [json.dumps(asdict(worker(name, 1, until))).encode() for name, until in [("b", 11), ("dead", 10), ("a", 12)]]
    assert [info.name for info in alive(infos, now=10)] == ["a", "b"]


def test_the_rates_of_the_workers_that_have_the_model_add_up() -> None:
    workers = [worker("a", 10, 99, "tiny"), worker("b", 30, 99, "tiny", "other"), worker("c", 500, 99, "other")]
    assert queue_place((3, 100), "tiny", workers) == QueuePlace(position=3, eta_s=2.5)


def test_there_is_no_estimate_far_back_in_the_queue() -> None:
    assert queue_place((1000, -1), "tiny", [worker("a", 10, 99, "tiny")]) == QueuePlace(position=1000, eta_s=None)
