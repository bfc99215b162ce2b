"""The peers' pipelines on the shipped weights."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from bench.lib.model import DEFAULT
from bench.systems import pipelines
from bench.systems.pipelines import Pipe, Setting

PIPE = Pipe(DEFAULT, "cpu")
pytestmark = pytest.mark.timeout(300)
EAGER = [
    Setting(torch.float32, torch.channels_last, False),
    Setting(torch.bfloat16, torch.contiguous_format, False),
]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pipelines, "TRIALS", 1)
    monkeypatch.setattr(pipelines, "TRIAL_STEPS", 1)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png))).astype(int)


def test_a_pipeline_makes_as_many_pngs_of_the_shipped_shape_as_asked() -> None:
    pngs = pipelines.draw(PIPE, count=3, steps=2, seed=1)
    assert [pixels(png).shape for png in pngs] == 3 * [(28, 28)]
    assert len(set(pngs)) == 3


@pytest.mark.parametrize("setting", EAGER, ids=str)
def test_a_tuned_pipeline_makes_the_same_pictures(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines, "SETTINGS", [setting])
    (plain,) = pipelines.pngs(pipelines.loaded(PIPE), 1, 20, seed=1)
    (tuned,) = pipelines.pngs(pipelines.tuned(PIPE, 1), 1, 20, seed=1)
    assert np.abs(pixels(plain) - pixels(tuned)).mean() < 3


def test_the_compiled_pipeline_is_in_that_setting_without_a_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Compiling takes a minute.
    monkeypatch.setattr(pipelines, "COMPILED", EAGER[0])
    monkeypatch.setattr(pipelines, "SETTINGS", [])
    pipeline = pipelines.compiled(PIPE, 2)
    assert pipelines.describe(pipeline, 2) == "batches of 2 float32, channels_last, not compiled"
    assert len(pipelines.pngs(pipeline, 2, 2, seed=1)) == 2


def test_a_setting_that_fails_is_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class NoCompiler(pipelines.TunedPipeline):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> object:
            if self.setting.dtype is torch.bfloat16:
                raise RuntimeError("no compiler")
            return super().forward(x, t)

    monkeypatch.setattr(pipelines, "TunedPipeline", NoCompiler)
    monkeypatch.setattr(pipelines, "SETTINGS", EAGER)
    setting = pipelines.describe(pipelines.tuned(PIPE, 1), 1)
    assert setting == "batches of 1 float32, channels_last, not compiled"
    assert "bfloat16, contiguous_format, not compiled: left out, no compiler" in caplog.text
