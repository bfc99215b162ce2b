"""`ddpm evaluate` on tiny models, mostly with random weights and random images."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner, Result

from cli.main import app
from models.evaluate.likelihood import Evaluation, Terms
from tests.support.folders import write_model
from tests.support.recipes import write_recipe


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.npz"
    np.savez(path, np.random.default_rng(0).integers(0, 256, (6, 8, 8), np.uint8))
    return path


def ddpm_evaluate(model: object, **options: object) -> Result:
    """Run the command on the CPU, unless another device is asked for."""
    words = ["evaluate", str(model)]
    for name, value in ({"device": "cpu"} | options).items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return CliRunner().invoke(app, words)


def saved_in(folder: Path) -> dict:
    return json.loads((folder / "likelihood.json").read_text())


def test_an_evaluation_is_printed_and_saved(tmp_path: Path, tiny_model: Path, data: Path) -> None:
    out = tmp_path / "out"
    result = ddpm_evaluate(tiny_model, data=data, images=5, batch_size=2, seed=3, out=out)
    assert result.exit_code == 0, result.output
    saved = saved_in(out)
    assert (saved["images"], saved["steps"], saved["seed"], len(saved["weights"])) == (5, 20, 3, 64)
    assert set(saved["bits_per_dimension"]) == {"fixed_large", "fixed_small", "analytic"}
    for name, likelihood in saved["bits_per_dimension"].items():
        assert likelihood["bits"] == pytest.approx(likelihood["rate"] + likelihood["distortion"])
        assert f"{likelihood['bits']:.3f} ± {likelihood['standard_error']:.3f}" in result.stdout
        assert saved["bits_per_dimension"]["analytic"]["bits"] <= likelihood["bits"], name
    for curve in ("timesteps", "rate", "rmse"):
        assert len(saved["coding"][curve]) == 20
    assert (out / "coding.png").read_bytes().startswith(b"\x89PNG")


def test_measured_images_come_evenly_from_all(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sorted.npz"
    np.savez(path, np.repeat(np.arange(10, dtype=np.uint8), 64).reshape(10, 8, 8))
    measured: list[int] = []
    real = Evaluation.terms

    def record(evaluation: Evaluation, pixels: Tensor, *rest: object) -> Terms:
        measured.extend(pixels[:, 0, 0, 0].tolist())
        return real(evaluation, pixels, *rest)

    monkeypatch.setattr(Evaluation, "terms", record)
    ddpm_evaluate(tiny_model, data=path, images=5, batch_size=2, steps=2, out=tmp_path / "out")
    assert measured == [0, 6, 2, 8, 4], "each batch comes from all over the data"


def test_an_evaluation_of_one_image_is_valid_json_too(
    tmp_path: Path, tiny_model: Path, data: Path
) -> None:
    ddpm_evaluate(tiny_model, data=data, images=1, steps=2, out=tmp_path)
    saved = json.loads((tmp_path / "likelihood.json").read_text(), parse_constant=pytest.fail)
    assert saved["bits_per_dimension"]["fixed_small"]["standard_error"] is None


def test_a_folder_that_cannot_be_made_is_reported_before_the_work(
    tmp_path: Path, tiny_model: Path, data: Path
) -> None:
    result = ddpm_evaluate(tiny_model, data=data, images=6, steps=2, out=data / "below")
    assert (result.exit_code, result.stderr.count("\n"), "--out" in result.stderr) == (1, 1, True)
    assert "image-steps" not in result.stdout


def test_a_batch_of_any_size_finds_the_same(tmp_path: Path, tiny_model: Path, data: Path) -> None:
    """Compare but for the network's last bits, which may differ from batch to batch."""
    bits = {}
    for size in (1, 4):
        out = tmp_path / str(size)
        ddpm_evaluate(tiny_model, data=data, images=4, batch_size=size, out=out)
        bits[size] = saved_in(out)["bits_per_dimension"]["fixed_small"]["bits"]
    assert bits[1] == pytest.approx(bits[4], rel=1e-5)


def test_a_model_can_be_given_by_name(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "models", "random")
    monkeypatch.setenv("DDPM_MODELS_DIR", str(tmp_path / "models"))
    monkeypatch.chdir(tmp_path)
    result = ddpm_evaluate("random", data=data, images=2, steps=3)
    assert result.exit_code == 0, result.output
    assert saved_in(tmp_path / "runs" / "evaluate" / "random-3-steps")["steps"] == 3


def test_a_stopped_evaluation_reports_on_the_batches_before(
    tmp_path: Path, tiny_model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop_after(steps: int) -> Result:
        left = iter([False] * steps)
        monkeypatch.setattr(
            "cli.commands.measure.StopRequest", lambda: nullcontext(lambda: next(left, True))
        )
        return ddpm_evaluate(tiny_model, data=data, images=6, batch_size=2, steps=5, out=out)

    out = tmp_path / "out"
    assert stop_after(12).exit_code == 0
    assert saved_in(out)["images"] == 4
    (out / "likelihood.json").unlink()
    result = stop_after(3)
    assert (result.exit_code, "before the first batch" in result.stderr) == (1, True)


def test_an_evaluation_replaces_only_one_of_the_same_kind_with_no_more_images(
    tmp_path: Path, tiny_model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    other = tmp_path / "other.npz"
    other.write_bytes(data.read_bytes())
    same = {"data": data, "images": 4, "steps": 3, "seed": 0, "out": out}

    def evaluate_with(model: Path = tiny_model, **changes: object) -> Result:
        return ddpm_evaluate(model, **(same | changes))

    assert [evaluate_with(images=n).exit_code for n in (3, 4, 4)] == [0, 0, 0]
    before = (out / "likelihood.json").read_bytes()
    write_model(tmp_path, "retrained")
    monkeypatch.setattr(Evaluation, "terms", lambda *_: pytest.fail("the work began"))
    for name, result in {
        "weights": evaluate_with(tmp_path / "retrained"),
        "data": evaluate_with(data=other),
        "images": evaluate_with(images=3),
        "steps": evaluate_with(steps=4),
        "seed": evaluate_with(seed=1),
    }.items():
        assert (result.exit_code, result.stderr.count("\n")) == (1, 1), result.output
        assert f"likelihood.json is an evaluation with {name}=" in result.stderr
        assert "name another folder with --out, or remove it" in result.stderr
    assert (out / "likelihood.json").read_bytes() == before
    (out / "likelihood.json").write_text("[]")
    assert (
        "cannot be read as an evaluation; name another folder with --out" in evaluate_with().stderr
    )


def test_an_earlier_evaluation_survives_a_full_disk(
    tmp_path: Path, tiny_model: Path, data: Path, full_disk
) -> None:
    options = {"data": data, "images": 4, "out": tmp_path / "out"}
    ddpm_evaluate(tiny_model, **options)
    before = (tmp_path / "out" / "likelihood.json").read_bytes()
    with full_disk():
        result = ddpm_evaluate(tiny_model, **options)
    assert (result.exit_code, "cannot be written to" in result.stderr) == (1, True)
    assert (tmp_path / "out" / "likelihood.json").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"images": 7}, "--images 7 is more than the 6"),
        ({"images": 6, "steps": 21}, "steps=21"),
        ({"images": 6, "device": "abacus"}, "--device abacus"),
    ],
)
def test_options_that_cannot_be_used_are_reported_in_one_line(
    tiny_model: Path, data: Path, options: dict[str, object], fact: str
) -> None:
    result = ddpm_evaluate(tiny_model, data=data, **options)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert fact in result.stderr


def test_images_of_another_shape_and_unknown_models_are_reported_in_one_line(
    tmp_path: Path, tiny_model: Path, data: Path
) -> None:
    wide = tmp_path / "wide.npz"
    np.savez(wide, np.zeros((6, 9, 9), np.uint8))
    for model, images, fact in (
        (tiny_model, wide, "(6, 9, 9), the network takes (N, 8, 8)"),
        ("nowhere", data, "fashion-mnist-28"),
    ):
        result = ddpm_evaluate(model, data=images, images=6)
        assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
        assert fact in result.stderr


def test_a_network_that_blows_up_gives_no_figures(tmp_path: Path, data: Path) -> None:
    write_model(tmp_path, "blown", blow_up=True)
    out = tmp_path / "out"
    result = ddpm_evaluate(tmp_path / "blown", data=data, images=2, steps=3, out=out)
    assert (result.exit_code, "not finite" in result.stderr) == (1, True)
    assert not list(out.iterdir())


def write_folder(folder: Path, count: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(folder / f"{i}.png")
    return folder


def test_a_picture_that_breaks_keeps_the_batches_before_it(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "pictures", 6)
    real = Evaluation.terms

    def breaking(evaluation: Evaluation, *rest: object) -> Terms:
        for i in range(6):
            (folder / f"{i}.png").write_bytes(b"broken")
        return real(evaluation, *rest)

    monkeypatch.setattr(Evaluation, "terms", breaking)
    out = tmp_path / "out"
    options = {"data": folder, "images": 6, "batch_size": 2, "steps": 2, "out": out}
    result = ddpm_evaluate(tiny_model, **options)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "cannot be read as an image" in result.stderr
    assert "the figures are of the 2 images before it" in result.stderr
    assert saved_in(out)["images"] == 2


def test_an_evaluation_halves_batches_that_do_not_fit(
    tmp_path: Path, tiny_model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Evaluation.terms

    def small(evaluation: Evaluation, pixels: Tensor, *rest: object) -> Terms:
        if len(pixels) > 2:
            raise MemoryError
        return real(evaluation, pixels, *rest)

    figures = []
    for folder in (tmp_path / "whole", tmp_path / "halves"):
        result = ddpm_evaluate(tiny_model, data=data, images=6, steps=3, out=folder)
        assert result.exit_code == 0, result.output
        figures.append(saved_in(folder)["bits_per_dimension"]["fixed_small"]["bits"])
        monkeypatch.setattr(Evaluation, "terms", small)
    assert figures[1] == pytest.approx(figures[0], rel=1e-6)


def test_an_evaluation_on_as_many_pictures_as_were_trained_on_is_warned_of(
    tmp_path: Path, data: Path
) -> None:
    recipe = write_recipe(tmp_path, updates=1)
    out = tmp_path / "run"
    words = ["train", str(recipe), "--out", str(out), "--device", "cpu"]
    assert CliRunner().invoke(app, words).exit_code == 0
    options = {"images": 2, "steps": 2, "out": tmp_path / "figures"}
    result = ddpm_evaluate(out / "tiny", data=tmp_path / "data.npz", **options)
    assert "these are the pictures that the network is trained on" in result.stderr
    other = ddpm_evaluate(out / "tiny", data=write_folder(tmp_path / "o", 4), **options)
    assert "trained on" not in other.stderr
