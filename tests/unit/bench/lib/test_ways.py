"""The ways of the parity table where images arrive late, as on a GPU."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from bench.lib.model import load
from bench.lib.other_process import draw_half
from bench.lib.ways import alone, any_few, joined, parked, set_aside, shuffled, together
from bench.lib.work import Work
from tests.support.folders import write_model
from tests.support.networks import LatePool
from worker.calibration.calibrate import Calibration
from worker.process.loaded_model import LoadedModel


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    write_model(tmp_path, "tiny")
    monkeypatch.setattr("worker.calibration.tune.Pool", LatePool)
    monkeypatch.setattr(
        "worker.calibration.tune.calibrate",
        lambda pool, T, sizes, clock, cores, between: Calibration(
            {1: 1.0, 4: 2.0}, threads=1, fewer=1
        ),
    )
    return Work(tmp_path / "tiny", "cpu", "fp32", images=12, steps=4)


@pytest.fixture
def model(work: Work) -> LoadedModel:
    return load(work.folder, "cpu", 24, "fp32")


@pytest.mark.parametrize("way", [together, shuffled, any_few, parked, set_aside, joined])
def test_every_image_is_made_once_and_is_the_one_made_alone(
    model: LoadedModel, work: Work, way
) -> None:
    reference = alone(model, work, random.Random(0))
    images = way(model, work, random.Random(1))
    assert images.keys() == reference.keys() == set(range(12))
    assert all(torch.equal(images[i], reference[i]) for i in reference)


def test_every_image_is_finished_or_packed_halfway(model: LoadedModel, work: Work) -> None:
    images, blobs = draw_half(model, work)
    assert 0 < len(images) < 12
    assert len(blobs) > 0
