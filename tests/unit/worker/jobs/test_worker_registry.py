from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from worker.jobs.worker_registry import (
    ModelInfo,
    Pace,
    WorkerCounters,
    WorkerInfo,
    labels,
    parse_counters,
    parse_workers,
)

MODEL = ModelInfo("fp32", "pytorch", 2, {1: 0.1, 10: 0.2})
LABELS = {"a": "box-cpu", "b": "box-cpu", "c": ""}
INFO = WorkerInfo("worker-1", "cuda:1", {"tiny": MODEL}, 1.0)


def test_a_pace_is_the_line_through_the_smallest_and_the_best_batch() -> None:
    pace = Pace.fit({1: 0.1, 10: 1.0, 20: 1.05, 40: 4.0})
    assert pace.largest == 20
    assert [pace.step_s(images) for images in (1, 20)] == pytest.approx([0.1, 1.05])
    assert pace.step_s(40) == pace.step_s(20)
    assert pace.image_steps_per_s == pytest.approx(20 / 1.05)


def test_a_pace_of_one_batch_size_has_no_slope() -> None:
    assert Pace.fit({4: 0.5}, slowed=2) == Pace(base_s=1.0, image_s=0.0, largest=4)


def test_the_rate_of_a_worker_is_that_of_its_fastest_model() -> None:
    slow = replace(MODEL, seconds={1: 1.0})
    worker = replace(INFO, models={"slow": slow, "tiny": MODEL}, slowed=2.0)
    assert worker.image_steps_per_s == pytest.approx(10 / 0.4)


def test_workers_that_compute_alike_do_not_differ() -> None:
    other = replace(INFO, name="worker-2", device="cuda:0", slowed=3.0)
    assert list(INFO.differences(other)) == []


@pytest.mark.parametrize(
    ("other", "there"),
    [
        (replace(INFO, device="cpu"), "fp32 on cpu by pytorch"),
        (
            replace(INFO, models={"tiny": replace(MODEL, precision="bf16")}),
            "bf16 on cuda by pytorch",
        ),
        (replace(INFO, models={"tiny": replace(MODEL, kernels="ours")}), "fp32 on cuda by ours"),
    ],
)
def test_workers_of_other_bits_differ_by_model(other: WorkerInfo, there: str) -> None:
    (difference,) = INFO.differences(other)
    assert difference == f"tiny in {there}, this one in fp32 on cuda by pytorch"


def printed(fingerprint: str, **fields: Any) -> WorkerInfo:
    return replace(INFO, models={"tiny": replace(MODEL, fingerprint=fingerprint, **fields)})


def test_workers_of_one_fingerprint_do_not_differ_whatever_they_compute_by() -> None:
    assert list(printed("aaa").differences(printed("aaa", kernels="ours"))) == []


def test_workers_of_two_fingerprints_differ_though_nothing_else_does() -> None:
    made = "fp32 on cuda by pytorch (fingerprint"
    (difference,) = printed("aaa").differences(printed("bbb"))
    assert difference == f"tiny in {made} bbb), this one in {made} aaa)"


def test_a_worker_without_a_fingerprint_is_compared_by_what_it_computes_by() -> None:
    assert list(INFO.differences(printed("aaa"))) == []
    assert list(INFO.differences(printed("aaa", precision="bf16")))


def test_models_that_only_one_worker_runs_are_no_difference() -> None:
    other = replace(INFO, models={"large": replace(MODEL, precision="bf16")})
    assert list(INFO.differences(other)) == []


def test_workers_are_read_by_name_without_those_of_another_version(
    caplog: pytest.LogCaptureFixture,
) -> None:
    newer = json.loads(replace(INFO, name="worker-3").to_json())
    del newer["slowed"]
    second = replace(INFO, name="worker-2")
    infos = [json.dumps(newer), second.to_json(), INFO.to_json()]
    assert parse_workers([info.encode() for info in infos]) == [INFO, second]
    assert "a worker of another version is not counted" in caplog.text


def test_a_label_stays_and_two_workers_of_one_label_are_told_apart():
    named = [replace(INFO, name=name, label=label) for name, label in LABELS.items()]
    assert labels(named) == {"a": "box-cpu", "b": "box-cpu-2", "c": "c"}


def test_counters_survive_the_way_through_the_job_store():
    counters = WorkerCounters(rescues=2)
    counters.stepped("tiny", 8, 0.5)
    counters.stepped("tiny", 4, 0.25)
    entries = {b"w": counters.to_json().encode(), b"old": b"{", b"new": b'{"more": 1}'}
    assert parse_counters(entries) == {"w": counters, "new": WorkerCounters()}
    assert (counters.image_steps, counters.steps) == ({"tiny": 12}, {"tiny": 2})
    assert counters.step_s == {"tiny": 0.75}
