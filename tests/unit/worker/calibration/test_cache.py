"""Saved calibrations: measured once, by one worker, and again when they no longer hold."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from worker.calibration.cache import CalibrationCache
from worker.calibration.calibrate import Calibration

FOUND = Calibration({1: 0.25, 16: 1.0}, threads=2, fewer=1, by_fewer={1: 0.5, 16: 2.0})
CONDITIONS = ("weights", "cpu", "torch 2.13")


def must_not_measure() -> Calibration:
    raise AssertionError("it is in the cache")


def test_a_saved_calibration_is_not_measured_again(tmp_path: Path):
    assert CalibrationCache(tmp_path).recall(CONDITIONS, lambda: FOUND) == FOUND
    assert CalibrationCache(tmp_path).recall(CONDITIONS, must_not_measure) == FOUND


def test_a_beaten_calibration_is_measured_again_by_one_worker(tmp_path: Path):
    """The next one takes what that worker has found since."""
    cache = CalibrationCache(tmp_path)
    better = Calibration({1: 0.1})
    cache.recall(CONDITIONS, lambda: FOUND)
    assert cache.recall(CONDITIONS, lambda: better, beaten=FOUND) == better
    assert cache.recall(CONDITIONS, must_not_measure, beaten=FOUND) == better


def test_other_conditions_have_another_calibration(tmp_path: Path):
    cache = CalibrationCache(tmp_path)
    cache.recall(CONDITIONS, lambda: FOUND)
    other = Calibration({2: 3.0})
    assert cache.recall(("weights", "cpu", "torch 2.14"), lambda: other) == other


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"key": 1}', '{"key": "x", "seconds": 3}'])
def test_a_damaged_file_is_replaced_by_a_new_measurement(tmp_path: Path, damage: str):
    cache = CalibrationCache(tmp_path)
    cache.recall(CONDITIONS, lambda: FOUND)
    (file,) = tmp_path.glob("*.json")
    file.write_text(damage)
    other = Calibration({2: 3.0})
    assert cache.recall(CONDITIONS, lambda: other) == other
    assert cache.recall(CONDITIONS, must_not_measure) == other


def test_a_folder_that_cannot_be_used_costs_time_and_nothing_else(tmp_path: Path):
    occupied = tmp_path / "file"
    occupied.write_text("no folder")
    assert CalibrationCache(occupied).recall(CONDITIONS, lambda: FOUND) == FOUND


def test_workers_that_start_at_once_wait_for_the_one_that_measures(tmp_path: Path):
    measured = []
    both = threading.Barrier(2)

    def measure() -> Calibration:
        measured.append(1)
        return FOUND

    def start() -> None:
        both.wait()
        assert CalibrationCache(tmp_path).recall(CONDITIONS, measure) == FOUND

    workers = [threading.Thread(target=start) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(measured) == 1
