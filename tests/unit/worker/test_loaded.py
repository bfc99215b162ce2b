"""A model's steps, as the worker asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from models.catalog import Catalog
from tests.support.folders import write_model
from worker.calibrate import Calibration
from worker.engine import ChainRequest
from worker.loaded import LoadedModel


@pytest.fixture
def used() -> list[int]:
    """The number of threads of each step."""
    return []


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used: list[int]) -> Iterator[LoadedModel]:
    """Calibration promised a step in no time: any machine is too busy to keep that."""
    before = torch.get_num_threads()
    write_model(tmp_path, "tiny")
    monkeypatch.setattr(
        "worker.tuning.calibrate", lambda pool, T, sizes: Calibration({1: 1e-9}, threads=2, fewer=1, by_fewer={1: 2e-9})
    )
    model = LoadedModel(Catalog.read(tmp_path), "tiny", torch.device("cpu"), 4, "fp32")
    network = model.engine.pool.network

    def watched(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        used.append(torch.get_num_threads())
        return network(x, t)

    model.engine.pool.network = watched
    yield model
    torch.set_num_threads(before)


def test_a_worker_that_cannot_keep_its_promise_tries_fewer_threads_and_promises_what_they_take(
    model: LoadedModel, used: list[int], monkeypatch
):
    monkeypatch.setattr("worker.threads._STRETCH_S", 0.0)  # every step is a stretch
    model.engine.submit([ChainRequest("a", "job", model.plan("ddpm", 10, "fixed_small", 0.0), 1, 0)])
    said = set()
    for _ in range(10):
        model.step()
        said.add((used[-1], model.promised_s(1), model.info.seconds[1]))
    assert used[0] == 2
    assert said == {(2, 1e-9, 1e-9), (1, 2e-9, 2e-9)}
