"""`ddpm train` on a tiny network and random images."""

from __future__ import annotations

import json
import os
import signal
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from cli.commands.train import lock_output
from cli.main import app
from cli.stop import StopRequest
from models.checkpoints import diffusers_format
from models.checkpoints.bad_checkpoint import BadCheckpoint
from models.checkpoints.catalog import read_card
from models.train.trainer import Trainer
from tests.support.recipes import make_runs_small, write_recipe


@pytest.fixture
def small_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    make_runs_small(monkeypatch)


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


def test_a_stop_saves_and_says_how_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = Trainer.update

    def terminated(trainer: Trainer, n: int) -> torch.Tensor:
        if n == 50:
            signal.raise_signal(signal.SIGTERM)
        return update(trainer, n)

    monkeypatch.setattr(Trainer, "update", terminated)
    recipe = write_recipe(tmp_path, updates=60)
    out = tmp_path / "run"
    result = ddpm_train(recipe, "--out", out, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "update 50/60" in result.stdout
    assert f"stopped at update 51 of 60, saved in {out}" in result.stdout
    assert f"resume with: ddpm train {recipe} --out {out}" in result.stdout
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


@pytest.mark.parametrize("device", ["cuda:99", "abacus", "mps", "meta", "hip"])
def test_a_device_that_is_not_there_is_a_fault(tmp_path: Path, device: str) -> None:
    result = ddpm_train(
        write_recipe(tmp_path, updates=60), "--out", tmp_path / "run", "--device", device
    )
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert f"--device {device} " in result.stderr


def write_pictures(folder: Path, names: list[str]) -> Path:
    rng = np.random.default_rng(0)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).save(path)
    return folder


@pytest.mark.usefixtures("small_runs")
def test_a_folder_of_pictures_is_trained_on_by_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pictures(Path("My Flowers"), [f"{kind}/{i}.png" for kind in "ab" for i in range(4)])
    words = ("--data", "My Flowers", "--device", "cpu", "--updates", 2)
    result = ddpm_train(*words)
    assert result.exit_code == 0, result.output
    assert "8 pictures (a 4, b 4)" in result.stdout
    assert "finished: the model is in runs/my-flowers/my-flowers-12" in result.stdout
    card = read_card(tmp_path / "runs" / "my-flowers" / "my-flowers-12")
    assert (card.data.name, card.data.images) == ("My Flowers", 8)
    assert "for 2 updates" in card.provenance
    assert " s on cpu in " in card.provenance
    last = (tmp_path / "runs" / "my-flowers" / "losses.csv").read_text().splitlines()[-1]
    assert last.startswith("2,")
    assert f"loss {float(last.split(',')[1]):.4f}" in card.provenance
    longer = ddpm_train(*words[:-1], 3)
    assert "resumed at update 2 on cpu" in longer.stdout


@pytest.mark.usefixtures("small_runs")
def test_data_of_another_run_in_the_folder_are_refused(tmp_path: Path) -> None:
    first = write_pictures(tmp_path / "first", ["a.png"])
    second = write_pictures(tmp_path / "second", ["a.png"])
    out = ("--out", tmp_path / "out", "--device", "cpu", "--updates", 1)
    assert ddpm_train("--data", first, *out).exit_code == 0
    result = ddpm_train("--data", second, *out)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert f"has a run on {first}, not on {second}; name another folder" in result.stderr


@pytest.mark.usefixtures("small_runs")
def test_a_new_recipe_can_be_followed_and_replaces_nothing(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", ["a.png", "b.png"])
    path = tmp_path / "toy.toml"
    result = ddpm_train("--new", path, "--data", data, "--updates", 1)
    assert result.exit_code == 0, result.output
    assert f"train with: ddpm train {path} --out runs/toy" in result.stdout
    again = ddpm_train("--new", path)
    assert (again.exit_code, "exists; name another file" in again.stderr) == (1, True)
    run = ddpm_train(path, "--out", tmp_path / "run", "--device", "cpu")
    assert run.exit_code == 0, run.output


@pytest.mark.usefixtures("small_runs")
def test_a_dry_run_says_what_would_be_done_and_writes_nothing(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", ["a.png", "b.png"])
    result = ddpm_train("--data", data, "--out", tmp_path / "run", "--device", "cpu", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "2000 updates of 16 are 16000.0 passes over 2 images" in result.stdout
    assert "with a warm-up of 200" in result.stdout
    assert "nothing was written" in result.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("small_runs")
def test_broken_pictures_end_the_run_before_it_begins_or_are_skipped(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", ["a.png", "b.png", "c.png"])
    (data / "b.png").write_bytes(b"broken")
    words = ("--data", data, "--out", tmp_path / "run", "--device", "cpu", "--updates")
    result = ddpm_train(*words, 1)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "b.png cannot be read as an image" in result.stderr
    assert "--skip-broken" in result.stderr
    result = ddpm_train(*words, 1, "--skip-broken")
    assert result.exit_code == 0, result.output
    assert "left out, unreadable: b.png (" in result.stdout
    # The choice is the run's.
    assert "resumed at update 1" in ddpm_train(*words, 2).stdout


def test_words_that_do_not_go_together_are_a_fault(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, updates=1)
    for words, text in (
        ((), "there is nothing to train on; give a RECIPE, or --data FOLDER"),
        ((recipe, "--data", tmp_path), "give either it, or --data or --new"),
    ):
        result = ddpm_train(*words)
        assert (result.exit_code, text in result.stderr) == (1, True)


def test_a_network_too_large_for_the_memory_is_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(Trainer, "update", fail)
    result = ddpm_train(
        write_recipe(tmp_path, updates=1), "--out", tmp_path / "run", "--device", "cpu"
    )
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "not enough memory for training.batch_size=4 (CUDA out of memory); lower" in (
        result.stderr
    )


def test_a_run_goes_on_without_a_sheet_that_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("models.train.report.samples.sample", fail)
    result = ddpm_train(
        write_recipe(tmp_path, updates=1), "--out", tmp_path / "run", "--device", "cpu"
    )
    assert result.exit_code == 0, result.output
    assert "no sheet of samples: there is not enough memory" in result.stdout


@pytest.mark.parametrize(
    ("package", "says"),
    [
        ("matplotlib", "draws the loss curve; install it: `make extra EXTRA=train`"),
        (
            "tensorboard",
            "training.tensorboard asks for; install it: `make extra EXTRA=tensorboard`",
        ),
    ],
)
def test_an_extra_that_is_missing_is_named_before_the_run_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, says: str
) -> None:
    def find(name: str) -> object:
        return None if name == package else find_spec(name)

    monkeypatch.setattr("cli.commands.train.find_spec", find)
    recipe = write_recipe(tmp_path, updates=1)
    recipe.write_text(recipe.read_text().replace("batch_size", "tensorboard = true\nbatch_size"))
    result = ddpm_train(recipe, "--out", tmp_path / "run", "--device", "cpu")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert f"{package} is not installed and" in result.stderr
    assert says in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_asked_for_events_leaves_them(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the tensorboard extra")
    recipe = write_recipe(tmp_path, updates=1)
    recipe.write_text(recipe.read_text().replace("batch_size", "tensorboard = true\nbatch_size"))
    result = ddpm_train(recipe, "--out", tmp_path / "run", "--device", "cpu")
    assert result.exit_code == 0, result.output
    (events,) = (tmp_path / "run" / "tensorboard").iterdir()
    assert b"samples" in events.read_bytes()


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


@pytest.mark.usefixtures("small_runs")
def test_a_model_is_fine_tuned_on_other_pictures(tmp_path: Path, tiny_model: Path) -> None:
    data = write_pictures(tmp_path / "data", ["a.png", "b.png"])
    out = tmp_path / "run"
    words = ("--data", data, "--out", out, "--device", "cpu", "--from", tiny_model, "--updates")
    result = ddpm_train(*words, 1)
    assert result.exit_code == 0, result.output
    (model,) = (path.parent for path in out.glob("*/card.json"))
    assert read_card(model).provenance.startswith("fine-tuned from elsewhere (")
    before, after = (diffusers_format.load(folder).net for folder in (tiny_model, model))
    assert before.cfg == after.cfg
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    assert max(float((one - other).abs().max()) for one, other in pairs) < 1e-3
    assert "resumed at update 1" in ddpm_train(*words, 2).stdout


def test_a_recipe_of_another_network_than_the_model_is_refused(
    tmp_path: Path, tiny_model: Path
) -> None:
    recipe = write_recipe(tmp_path, updates=1)
    recipe.write_text(recipe.read_text().replace("[8, 8]", "[8, 16]"))
    result = ddpm_train(recipe, "--out", tmp_path / "run", "--device", "cpu", "--from", tiny_model)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "network." in result.stderr
    assert "is not that of elsewhere" in result.stderr


@pytest.mark.usefixtures("small_runs")
def test_a_run_that_began_otherwise_is_not_fine_tuned(tmp_path: Path, tiny_model: Path) -> None:
    data = write_pictures(tmp_path / "data", ["a.png", "b.png"])
    path = tmp_path / "recipe.toml"
    assert ddpm_train("--new", path, "--data", data, "--from", tiny_model).exit_code == 0
    words = (path, "--out", tmp_path / "run", "--device", "cpu", "--updates", 1)
    assert ddpm_train(*words).exit_code == 0
    result = ddpm_train(*words, "--from", tiny_model)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "a run that did not begin from elsewhere; use another --out" in result.stderr


@pytest.mark.parametrize(
    ("file", "key", "value", "reason"),
    [
        ("scheduler/scheduler_config.json", "clip_sample", False, "x_0_hat is not clipped at 1"),
        ("scheduler/scheduler_config.json", "trained_betas", [0.1, 0.2], "a list of betas"),
        ("unet/config.json", "downsample_type", None, "downsample_type is null"),
        ("unet/config.json", "class_embed_type", "identity", "is no embedding of classes"),
    ],
)
def test_a_model_that_no_recipe_describes_is_not_fine_tuned(
    tmp_path: Path, tiny_model: Path, file: str, key: str, value: object, reason: str
) -> None:
    content = json.loads((tiny_model / file).read_text()) | {key: value}
    if key == "trained_betas":
        content["num_train_timesteps"] = 2
    (tiny_model / file).write_text(json.dumps(content))
    result = ddpm_train("--new", tmp_path / "recipe.toml", "--from", tiny_model)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert reason in result.stderr


@pytest.mark.usefixtures("small_runs")
def test_an_array_of_images_that_are_not_square_is_trained_on(tmp_path: Path) -> None:
    data = tmp_path / "wide.npz"
    np.savez(data, images=np.random.default_rng(0).integers(0, 256, (4, 8, 12, 2), np.uint8))
    words = ("--data", data, "--out", tmp_path / "run", "--device", "cpu", "--updates", 1)
    result = ddpm_train(*words)
    assert result.exit_code == 0, result.output
    assert read_card(tmp_path / "run" / "wide-8x12").shape.model_dump() == {
        "channels": 2,
        "height": 8,
        "width": 12,
    }
