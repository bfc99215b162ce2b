from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from cli.main import app
from models.evaluate.likelihood import Evaluation
from tests.support.folders import write_model


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.npz"
    np.savez(path, np.random.default_rng(0).integers(0, 256, (6, 8, 8), np.uint8))
    return path


def ddpm_evaluate(*words: object) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, words), "--device", "cpu"])


def found(folder: Path) -> dict:
    return json.loads((folder / "likelihood.json").read_text())


def test_an_evaluation_is_told_and_kept(tmp_path: Path, tiny_model: Path, data: Path) -> None:
    out = tmp_path / "out"
    result = ddpm_evaluate(
        tiny_model, "--data", data, "--images", 5, "--batch-size", 2, "--seed", 3, "--out", out
    )
    assert result.exit_code == 0, result.output
    kept = found(out)
    assert (kept["images"], kept["steps"], kept["seed"], len(kept["weights"])) == (5, 20, 3, 64)
    assert set(kept["bits_per_dimension"]) == {"fixed_large", "fixed_small", "analytic"}
    for name, likelihood in kept["bits_per_dimension"].items():
        assert likelihood["bits"] == pytest.approx(likelihood["rate"] + likelihood["distortion"])
        assert f"{likelihood['bits']:.3f} ± {likelihood['standard_error']:.3f}" in result.stdout
        assert kept["bits_per_dimension"]["analytic"]["bits"] <= likelihood["bits"], name
    assert (
        len(kept["coding"]["timesteps"])
        == len(kept["coding"]["rate"])
        == len(kept["coding"]["rmse"])
        == 20
    )
    assert (out / "coding.png").read_bytes().startswith(b"\x89PNG")


def test_pictures_are_taken_evenly_from_all(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "sorted.npz", []
    np.savez(path, np.repeat(np.arange(10, dtype=np.uint8), 64).reshape(10, 8, 8))
    real = Evaluation.terms
    monkeypatch.setattr(
        Evaluation,
        "terms",
        lambda self, pixels, *rest: (
            seen.extend(pixels[:, 0, 0, 0].tolist()) or real(self, pixels, *rest)
        ),
    )
    ddpm_evaluate(
        tiny_model,
        "--data",
        path,
        "--images",
        5,
        "--batch-size",
        2,
        "--steps",
        2,
        "--out",
        tmp_path / "out",
    )
    assert seen == [0, 6, 2, 8, 4], "each batch from everywhere"


def test_of_one_picture_the_file_is_json_all_the_same(
    tmp_path: Path, tiny_model: Path, data: Path
) -> None:
    ddpm_evaluate(tiny_model, "--data", data, "--images", 1, "--steps", 2, "--out", tmp_path)
    kept = json.loads((tmp_path / "likelihood.json").read_text(), parse_constant=pytest.fail)
    assert kept["bits_per_dimension"]["fixed_small"]["standard_error"] is None


def test_a_folder_that_cannot_be_made_is_told_before_the_work(
    tmp_path: Path, tiny_model: Path, data: Path
) -> None:
    result = ddpm_evaluate(
        tiny_model, "--data", data, "--images", 6, "--steps", 2, "--out", data / "below"
    )
    assert (result.exit_code, result.stderr.count("\n"), "--out" in result.stderr) == (1, 1, True)
    assert "image-steps" not in result.stdout


def test_a_batch_of_any_size_finds_the_same(tmp_path: Path, tiny_model: Path, data: Path) -> None:
    """But for the last bits of the network, which may differ from batch to batch."""
    for size in (1, 4):
        ddpm_evaluate(
            tiny_model,
            "--data",
            data,
            "--images",
            4,
            "--batch-size",
            size,
            "--out",
            tmp_path / str(size),
        )
    one, four = (
        found(tmp_path / str(size))["bits_per_dimension"]["fixed_small"]["bits"] for size in (1, 4)
    )
    assert one == pytest.approx(four, rel=1e-5)


def test_a_model_may_be_named(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "models", "random")
    monkeypatch.setenv("DDPM_MODELS_DIR", str(tmp_path / "models"))
    monkeypatch.chdir(tmp_path)
    result = ddpm_evaluate("random", "--data", data, "--images", 2, "--steps", 3)
    assert result.exit_code == 0, result.output
    assert found(tmp_path / "runs" / "evaluate" / "random-3-steps")["steps"] == 3


def test_what_is_stopped_reports_on_the_batches_before(
    tmp_path: Path, tiny_model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop_after(steps: int) -> Result:
        left = iter([False] * steps)
        monkeypatch.setattr(
            "cli.commands.measure.StopRequest", lambda: nullcontext(lambda: next(left, True))
        )
        return ddpm_evaluate(
            tiny_model,
            "--data",
            data,
            "--images",
            6,
            "--batch-size",
            2,
            "--steps",
            5,
            "--out",
            tmp_path / "out",
        )

    assert stop_after(12).exit_code == 0
    assert found(tmp_path / "out")["images"] == 4
    (tmp_path / "out" / "likelihood.json").unlink()
    result = stop_after(3)
    assert (result.exit_code, "before the first batch" in result.stderr) == (1, True)


def test_an_evaluation_replaces_its_like_of_no_more_images_and_no_other(
    tmp_path: Path, tiny_model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, other = tmp_path / "out", tmp_path / "other.npz"
    other.write_bytes(data.read_bytes())
    same = {"--data": data, "--images": 4, "--steps": 3, "--seed": 0, "--out": out}

    def evaluate_with(model: Path = tiny_model, **changes: object) -> Result:
        options = same | {f"--{name}": value for name, value in changes.items()}
        return ddpm_evaluate(model, *(word for option in options.items() for word in option))

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


def test_on_a_full_disk_the_evaluation_before_stays(
    tmp_path: Path, tiny_model: Path, data: Path, full_disk
) -> None:
    words = (tiny_model, "--data", data, "--images", 4, "--out", tmp_path / "out")
    ddpm_evaluate(*words)
    before = (tmp_path / "out" / "likelihood.json").read_bytes()
    with full_disk():
        result = ddpm_evaluate(*words)
    assert (result.exit_code, "cannot be written to" in result.stderr) == (1, True)
    assert (tmp_path / "out" / "likelihood.json").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--images", 7], "--images 7 is more than the 6"),
        (["--images", 6, "--steps", 21], "steps=21"),
        (["--images", 6, "--device", "abacus"], "--device abacus"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(
    tiny_model: Path, data: Path, words: list[object], said: str
) -> None:
    result = CliRunner().invoke(
        app, ["evaluate", str(tiny_model), "--data", str(data), *map(str, words)]
    )
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert said in result.stderr


def test_pictures_of_another_shape_and_unknown_models_are_told_in_one_line(
    tmp_path: Path, tiny_model: Path, data: Path
) -> None:
    wide = tmp_path / "wide.npz"
    np.savez(wide, np.zeros((6, 9, 9), np.uint8))
    for model, pictures, said in (
        (tiny_model, wide, "(1, 9, 9)"),
        ("nowhere", data, "fashion-mnist-28"),
    ):
        result = ddpm_evaluate(model, "--data", pictures, "--images", 6)
        assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
        assert said in result.stderr


def test_a_network_that_blows_up_gives_no_figures(tmp_path: Path, data: Path) -> None:
    write_model(tmp_path, "blown", blow_up=True)
    result = ddpm_evaluate(
        tmp_path / "blown", "--data", data, "--images", 2, "--steps", 3, "--out", tmp_path / "out"
    )
    assert (result.exit_code, "not finite" in result.stderr) == (1, True)
    assert not list((tmp_path / "out").iterdir())
