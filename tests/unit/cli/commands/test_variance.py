"""`ddpm models variance`, and evaluations that use its estimate."""

from __future__ import annotations

import signal
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from cli.main import app
from models.checkpoints import diffusers_format
from models.checkpoints.catalog import read_card, sha256_of, write_card
from models.checkpoints.residual_variance import FILE, ResidualVariance
from models.evaluate.likelihood import Evaluation
from tests.support.cards import card_of


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 8, 8), np.uint8)


@pytest.fixture
def data(tmp_path: Path, pixels: np.ndarray) -> Path:
    path = tmp_path / "data.npz"
    np.savez(path, pixels)
    return path


@pytest.fixture
def model(tiny_model: Path) -> Path:
    write_card(tiny_model, card_of("tiny", sha256=diffusers_format.load(tiny_model).sha256))
    return tiny_model


def estimate(*words: object) -> Result:
    return CliRunner().invoke(app, ["models", "variance", *map(str, words), "--device", "cpu"])


def test_an_estimate_is_the_networks_squared_error_at_every_timestep(
    model: Path, data: Path, pixels: np.ndarray
) -> None:
    result = estimate(model, "--data", data, "--images", 6, "--batch-size", 4, "--seed", 3)
    assert result.exit_code == 0, result.output
    loaded = diffusers_format.load(model)
    found = ResidualVariance.read(model, loaded.sha256, 20, read_card(model).residual_variance)
    assert (found.images, found.seed, found.data) == (6, 3, str(data))
    evaluation = Evaluation(loaded.net, loaded.schedule, "epsilon", 20)
    terms = evaluation.terms(torch.from_numpy(pixels)[:, None], 3, range(6))
    torch.testing.assert_close(found.tensor, terms.squared_error.mean(0), rtol=1e-5, atol=0)


def test_an_evaluation_on_other_pictures_goes_by_the_estimate(
    model: Path, data: Path, tmp_path: Path
) -> None:
    def evaluate() -> tuple[float, str]:
        """Return the bits/dim of the analytic variance, and the command's output on one line."""
        options = f"--data {data} --images 3 --out {tmp_path / 'out'} --device cpu"
        result = CliRunner().invoke(app, ["evaluate", str(model), *options.split()])
        assert result.exit_code == 0, result.output
        row = next(line for line in result.stdout.splitlines() if "analytic" in line)
        return float(row.split()[1]), " ".join(result.stdout.split())

    fitted_bits, fitted_output = evaluate()
    estimate(model, "--data", data, "--images", 6)
    estimated_bits, estimated_output = evaluate()
    assert estimated_bits > fitted_bits, "nothing fits images as well as what was fitted to them"
    assert "fitted to these images" in fitted_output
    assert f"estimated on 6 images of {data}" in estimated_output


def test_a_stopped_estimate_is_made_of_the_batches_before(
    model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter([False] * 50)
    monkeypatch.setattr(
        "cli.commands.measure.StopRequest", lambda: nullcontext(lambda: next(left, True))
    )
    assert estimate(model, "--data", data, "--images", 6, "--batch-size", 2).exit_code == 0
    assert ResidualVariance.read(model, read_card(model).sha256, 20).images == 4


def test_signals_do_after_an_estimate_what_they_did_before(model: Path, data: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    assert estimate(model, "--data", data, "--images", 1).exit_code == 0
    assert signal.getsignal(signal.SIGINT) == before


def test_a_model_without_a_card_of_its_own_is_refused(tiny_model: Path, data: Path) -> None:
    result = estimate(tiny_model, "--data", data, "--images", 2)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "card.json" in result.stderr
    write_card(tiny_model, card_of("tiny"))
    result = estimate(tiny_model, "--data", data, "--images", 2)
    assert (result.exit_code, "the card is of weights abababababab" in result.stderr) == (1, True)
    assert not (tiny_model / FILE).exists()


def test_an_estimate_for_other_weights_is_replaced(model: Path, data: Path) -> None:
    stale = ResidualVariance(weights="ab" * 32, data="noise", images=1, seed=0, values=(0.5,) * 20)
    write_card(model, read_card(model).model_copy(update={"residual_variance": stale.write(model)}))
    refused = CliRunner().invoke(
        app, ["evaluate", str(model), "--data", str(data), "--images", "1", "--device", "cpu"]
    )
    assert (refused.exit_code, "ddpm models variance" in refused.stderr) == (1, True)
    assert estimate(model, "--data", data, "--images", 1).exit_code == 0
    assert ResidualVariance.read(model, read_card(model).sha256, 20).images == 1


def test_the_card_is_otherwise_what_it_was(model: Path, data: Path) -> None:
    before = read_card(model)
    estimate(model, "--data", data, "--images", 1)
    assert read_card(model) == before.model_copy(
        update={"residual_variance": sha256_of(model / FILE)}
    )
