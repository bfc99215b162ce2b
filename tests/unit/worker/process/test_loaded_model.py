"""A model's steps, as the worker asks for them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.checkpoints.bad_checkpoint import BadCheckpoint
from models.checkpoints.catalog import Catalog, write_card
from models.checkpoints.residual_variance import ResidualVariance
from models.diffusion.plans import compile_plan
from tests.support.folders import write_model
from worker.calibration.calibrate import Calibration
from worker.engine.chain import ChainRequest
from worker.jobs.domain import Recipe, Shard, shards_of
from worker.process.loaded_model import CannotRun, LoadedModel


@pytest.fixture
def used() -> list[int]:
    """Numbers of threads, one for each step."""
    return []


@pytest.fixture
def model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used: list[int]
) -> Iterator[LoadedModel]:
    """A model whose calibration promised a step in no time, which no machine can keep."""
    before = torch.get_num_threads()
    write_model(tmp_path, "tiny")
    monkeypatch.setattr(
        "worker.calibration.tune.calibrate",
        lambda pool, T, sizes, clock, cores, between: Calibration(
            {1: 1e-9}, threads=2, fewer=1, by_fewer={1: 2e-9}
        ),
    )
    model = LoadedModel(Catalog.read(tmp_path), "tiny", torch.device("cpu"), 4, "fp32")
    network = model.engine.pool.network

    def watched(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        used.append(torch.get_num_threads())
        return network(x, t)

    model.engine.pool.network = watched
    yield model
    torch.set_num_threads(before)


def test_a_model_slower_than_promised_tries_fewer_threads_and_promises_less(
    model: LoadedModel, used: list[int], monkeypatch
):
    # Every step is a stretch that is long enough to judge by.
    monkeypatch.setattr("worker.calibration.adaptive_threads._STRETCH_S", 0.0)
    plan = model.plan("ddpm", 10, "fixed_small", 0.0)
    model.engine.submit([ChainRequest("a", "job", plan, 1, 0)])
    promised = set()
    for _ in range(10):
        model.step()
        promised.add((used[-1], model.promised_s(1), model.info.seconds[1]))
    assert used[0] == 2
    assert promised == {(2, 1e-9, 1e-9), (1, 2e-9, 2e-9)}


def test_a_plan_of_the_analytic_variance_uses_the_models_own_estimate(
    tmp_path: Path, model: LoadedModel
):
    card = write_model(tmp_path / "more", "tiny", analytic=True)
    assert card.residual_variance is not None
    loaded = LoadedModel(Catalog.read(tmp_path / "more"), "tiny", torch.device("cpu"), 4, "fp32")
    estimate = ResidualVariance.read(tmp_path / "more" / "tiny", card.sha256, 1000).tensor
    expected = compile_plan(loaded.schedule, 10, variance="analytic", residual_variance=estimate)
    assert torch.equal(loaded.plan("ddpm", 10, "analytic", 0.0).rows, expected.rows)
    recipe = Recipe("tiny", card.sha256, "ddpm", 10, "analytic", 0.0, 1, card.residual_variance)
    shard = next(shards_of("a" * 32, recipe, 0, 1, "local", "interactive"))
    loaded.admit(Shard.from_json(json.loads(json.dumps(shard.to_json()))), [0], None)
    assert len(loaded.engine) == 1
    with pytest.raises(
        CannotRun,
        match=f"residual variance {card.residual_variance[:12]} of 'tiny', the worker has none",
    ) as error:
        model.admit(shard, [0], None)
    assert error.value.code == "wrong_residual_variance"
    with pytest.raises(CannotRun, match="residual variance none"):
        loaded.admit(replace(shard, recipe=replace(recipe, residual_variance="")), [0], None)


def test_an_estimate_that_the_card_does_not_name_is_not_served(tmp_path: Path, model: LoadedModel):
    card = write_model(tmp_path / "more", "tiny", analytic=True)
    write_card(tmp_path / "more" / "tiny", card.model_copy(update={"residual_variance": "ef" * 32}))
    with pytest.raises(BadCheckpoint, match="not the one that the card names"):
        LoadedModel(Catalog.read(tmp_path / "more"), "tiny", torch.device("cpu"), 4, "fp32")
