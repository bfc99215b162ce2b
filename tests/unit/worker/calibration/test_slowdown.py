"""The slowdown that a worker reports, in calculated time."""

from __future__ import annotations

import pytest

from worker.calibration.slowdown import Slowdown


def test_a_worker_is_as_fast_as_calibrated_until_two_seconds_of_steps_say_otherwise():
    speed = Slowdown()
    for _ in range(19):
        speed.note(took_s=0.1, promised_s=0.05)
    assert speed.slowed == 1
    speed.note(took_s=0.1, promised_s=0.05)
    assert speed.slowed == pytest.approx(2)


def test_a_busy_moment_counts_little_and_lasting_trouble_all():
    speed = Slowdown()
    for _ in range(10):
        speed.note(took_s=1, promised_s=1)
    speed.note(took_s=1, promised_s=0.1)
    assert speed.slowed < 1.5
    for _ in range(60):
        speed.note(took_s=1, promised_s=0.1)
    assert speed.slowed == pytest.approx(10, rel=0.05)
