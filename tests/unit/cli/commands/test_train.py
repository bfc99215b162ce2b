"""`ddpm train` on a tiny network and random images."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from cli.commands.train import lock_output
from cli.main import app
from cli.stop import StopRequest
from models.checkpoints.catalog import read_card
from models.checkpoints.diffusers_format import BadCheckpoint

RECIPE = """
[data]
path = "{data}"
name = "noise"
licence = "none"

[network]
sample_size = 8
in_channels = 1
out_channels = 1
block_out_channels = [8, 8]
layers_per_block = 1
down_block_types = ["DownBlock2D", "DownBlock2D"]
up_block_types = ["UpBlock2D", "UpBlock2D"]
norm_num_groups = 4
attention_head_dim = 8

[schedule]
kind = "linear"
T = 20

[training]
updates = {updates}
batch_size = 4
precision = "fp32"
save_every_s = {save_every_s}
sample_steps = 2

[card]
name = "tiny"
licence = "MIT"
defaults = {{ steps = 5 }}
"""


def write_recipe(folder: Path, updates: int, save_every_s: float = 300) -> Path:
    np.savez(folder / "data.npz", np.random.default_rng(0).integers(0, 256, (16, 8, 8), np.uint8))
    path = folder / "recipe.toml"
    path.write_text(
        RECIPE.format(data=folder / "data.npz", updates=updates, save_every_s=save_every_s)
    )
    return path


def damaged(out: Path) -> None:
    out.mkdir()
    (out / "state.safetensors").write_bytes(b"no state")


def ddpm_train(*words: object) -> Result:
    return CliRunner().invoke(app, ["train", *map(str, words)])


@pytest.mark.slow
def test_a_run_leaves_a_model_its_card_the_curve_and_samples(tmp_path: Path) -> None:
    result = ddpm_train(
        write_recipe(tmp_path, updates=60), "--out", tmp_path / "run", "--device", "cpu"
    )
    assert result.exit_code == 0, result.output
    assert "update 50/60  loss" in result.stdout
    assert read_card(tmp_path / "run" / "tiny").data.images == 16
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "run" / "samples-000060.png").exists()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_stop_saves_and_says_how_to_resume(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, updates=1_000_000)
    out = tmp_path / "run"
    command = [sys.executable, "-u", "-m", "cli", "train", str(recipe), "--out", str(out)]
    command += ["--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as training:
        assert training.stdout is not None
        assert "update 50/1000000" in training.stdout.readline()
        training.send_signal(signal.SIGTERM)
        output = training.stdout.read()
    assert training.returncode == 0
    assert f"resume with: ddpm train {recipe} --out {out}" in output
    assert (out / "state.safetensors").exists()
    assert (out / "tiny" / "card.json").exists()


@pytest.mark.parametrize(("updates", "exported"), [(3, True), (0, False)])
def test_a_stop_within_the_first_fifty_updates_exports_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, updates: int, exported: bool
) -> None:
    asked = iter([False] * updates)
    monkeypatch.setattr(StopRequest, "__call__", lambda _: next(asked, True))
    recipe = write_recipe(tmp_path, updates=60, save_every_s=1e-9)
    result = ddpm_train(recipe, "--out", tmp_path / "run", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert f"stopped at update {updates} of 60, saved" in result.stdout
    assert (tmp_path / "run" / "tiny" / "card.json").exists() == exported


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda path: path.unlink(), "does not exist"),
        (lambda path: path.write_text("[data"), "is not TOML"),
        (
            lambda path: path.write_text(path.read_text().replace("updates = 60", "updates = 0")),
            "training.updates",
        ),
        (lambda path: (path.parent / "data.npz").unlink(), "data.npz"),
        (lambda path: (path.unlink(), path.mkdir()), "recipe.toml cannot be read"),
        (lambda path: (path.parent / "run").touch(), "run is a file; name a folder with --out"),
        (
            lambda path: (path.parent / "run" / "tiny").mkdir(parents=True),
            "tiny is where the model goes, and holds no card.json",
        ),
        (lambda path: damaged(path.parent / "run"), "state.safetensors cannot be read"),
    ],
)
def test_a_run_that_cannot_start_is_reported_in_one_line(
    tmp_path: Path, fault: object, words: str
) -> None:
    recipe = write_recipe(tmp_path, updates=60)
    fault(recipe)  # type: ignore[operator]
    result = ddpm_train(recipe, "--out", tmp_path / "run", "--device", "cpu")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert words in result.stderr


@pytest.mark.parametrize("device", ["cuda:99", "abacus"])
def test_a_device_that_is_not_there_is_a_fault(tmp_path: Path, device: str) -> None:
    result = ddpm_train(
        write_recipe(tmp_path, updates=60), "--out", tmp_path / "run", "--device", device
    )
    assert (result.exit_code, device in result.stderr) == (1, True)


def test_a_second_run_to_the_same_folder_names_the_process_of_the_first(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, updates=1)
    (tmp_path / "run").mkdir()
    with lock_output(tmp_path / "run"):
        result = ddpm_train(recipe, "--out", tmp_path / "run", "--device", "cpu")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert (
        f"run is in use by another `ddpm train` (pid {os.getpid()}); stop it, or name another --out"
        in result.stderr
    )
    with lock_output(tmp_path / "run"):
        pass


def test_a_model_that_cannot_be_exported_is_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise BadCheckpoint("conv_in.weight holds NaN")

    monkeypatch.setattr("cli.commands.train.export.export", fail)
    result = ddpm_train(
        write_recipe(tmp_path, updates=1), "--out", tmp_path / "run", "--device", "cpu"
    )
    assert (result.exit_code, result.stderr) == (1, "ddpm: conv_in.weight holds NaN\n")


def test_signals_do_after_a_stop_request_what_they_did_before() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopRequest() as stop:
        assert not stop()
        signal.raise_signal(signal.SIGINT)
        assert stop()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
