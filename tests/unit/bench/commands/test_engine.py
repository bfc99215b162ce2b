"""The engine compared with the bare network."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from bench.commands import engine
from bench.lib.model import load
from tests.support.folders import write_model
from worker.calibration.calibrate import Calibration


def test_a_row_has_the_medians_of_all_its_rounds_and_not_of_the_turn_that_warms_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path, "tiny")
    monkeypatch.setattr(
        "worker.calibration.tune.calibrate",
        lambda pool, T, sizes, clock, cores, between: Calibration({4: 2.0}, threads=1, fewer=1),
    )
    bursts = itertools.count()
    # Each of the four bursts of turn n takes n seconds.
    monkeypatch.setattr(engine, "time_burst", lambda model, run: float(next(bursts) // 4))
    (row,) = engine.measure(load(tmp_path / "tiny", "cpu", 24, "fp32"))
    assert (row.network_s, row.engine_s, row.rows_s) == 3 * ((1 + engine.ROUNDS) / 2,)
    assert next(bursts) == 4 * (1 + engine.ROUNDS)
