"""`ddpm interpolate` on a tiny model with random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from cli.main import app
from models.checkpoints import diffusers_format
from models.checkpoints.catalog import ScheduleCard
from tests.support.networks import TINY, random_unet


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Path, Path]:
    """Two files, of another size than the network's images."""
    paths = (tmp_path / "first.png", tmp_path / "second.png")
    for path, level in zip(paths, (0, 200), strict=True):
        Image.new("RGB", (24, 16), (level, level, level)).save(path)
    return paths


def interpolate(*words: object) -> Result:
    return CliRunner().invoke(app, ["interpolate", *map(str, words), "--device", "cpu"])


def test_a_sheet_has_a_row_for_each_t_between_the_two_images(
    tmp_path: Path, tiny_model: Path, pictures: tuple[Path, Path]
) -> None:
    out = tmp_path / "sheet.png"
    result = interpolate(tiny_model, *pictures, "--t", 5, "--t", 19, "--between", 3, "--out", out)
    assert result.exit_code == 0, result.output
    assert "a row for t = 5, 19" in result.stdout
    sheet = np.asarray(Image.open(out))
    assert sheet.shape == (2 * 8, (1 + 1 + 3 + 1 + 1) * 8)
    assert (sheet[:, :8] == 0).all()
    assert (sheet[:, -8:] == 200).all()
    decoded = sheet[:8, 8:-8].reshape(8, 5, 8).swapaxes(0, 1)
    assert len({row.tobytes() for row in decoded}) == 5
    again = tmp_path / "again.png"
    interpolate(tiny_model, *pictures, "--t", 5, "--t", 19, "--between", 3, "--out", again)
    assert again.read_bytes() == out.read_bytes()


def test_few_steps_take_the_smaller_variance_unless_another_is_named(
    tmp_path: Path, pictures: tuple[Path, Path]
) -> None:
    linear = ScheduleCard(kind="linear", T=20)
    diffusers_format.save(
        tmp_path / "large", TINY, random_unet().state_dict(), linear, "epsilon", "fixed_large"
    )
    drawn = {}
    for steps, words, variance in (
        (20, [], "fixed_large"),
        (20, ["--variance", "fixed_small"], "fixed_small"),
        (19, [], "fixed_small"),
        (19, ["--variance", "fixed_small"], "fixed_small"),
        (19, ["--variance", "fixed_large"], "fixed_large"),
    ):
        out = tmp_path / "sheet.png"
        result = interpolate(
            tmp_path / "large", *pictures, "--t", 19, "--steps", steps, *words, "--out", out
        )
        assert f"a row for t = 19; variance {variance}" in result.stdout, result.output
        assert drawn.setdefault((steps, variance), out.read_bytes()) == out.read_bytes()
    assert len(set(drawn.values())) == 4


@pytest.mark.parametrize(
    ("words", "fact"),
    [
        (["--t", 20], "--t 20 is no timestep of the model; give 0 to 19"),
        (["--t", 5, "--steps", 7], "--steps 7 is more than the 6 from t = 5 down"),
        (["--t", 5, "--out", "/nowhere/sheet.png"], "/nowhere/sheet.png cannot be saved"),
        (["--t", 5, "--out", "sheet.words"], "sheet.words cannot be saved"),
        (["--t", 5, "--out", "sheet"], "sheet cannot be saved"),
        (["--t", 5, "--out", "/tmp"], "/tmp cannot be saved"),
    ],
)
def test_options_that_cannot_be_used_are_reported_in_one_line_before_any_step(
    tiny_model: Path,
    pictures: tuple[Path, Path],
    words: list[object],
    fact: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "cli.commands.interpolate.interpolate", lambda *_: pytest.fail("a step was taken")
    )
    result = interpolate(tiny_model, *pictures, *words)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert fact in result.stderr


def test_a_file_that_is_no_image_is_named(
    tiny_model: Path, pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "words.png").write_text("no picture")
    result = interpolate(tiny_model, pictures[0], tmp_path / "words.png", "--t", 5)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "words.png cannot be read as an image" in result.stderr
    assert "give another, or save it anew as an 8-bit PNG" in result.stderr
