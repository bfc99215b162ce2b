from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cli.main import app
from models.catalog import Catalog, sha256_of
from models.checkpoint import WEIGHTS
from models.residual_variance import FILE, ResidualVariance


@pytest.fixture(autouse=True)
def models_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DDPM_MODELS_DIR", str(tmp_path / "added"))
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path / "added"


def ddpm(*words: object) -> Result:
    return CliRunner().invoke(app, list(map(str, words)))


def test_an_added_model_is_listed_and_complete(tiny_model: Path, models_dir: Path) -> None:
    (tiny_model / "state.safetensors").write_bytes(b"what training left behind")
    weights = sha256_of(tiny_model / "unet" / WEIGHTS)
    estimate = ResidualVariance(weights=weights, data="noise", images=1, seed=0, values=(0.5,) * 20).write(tiny_model)
    added = ddpm("models", "add", tiny_model, "--name", "tiny", "--licence", "MIT", "--data-name", "noise", "--default")
    assert added.exit_code == 0, added.stderr
    catalog = Catalog.read(models_dir)
    assert (catalog.default.name, catalog.default.data.name, catalog.default.licence) == ("tiny", "noise", "MIT")
    assert not (catalog.folder("tiny") / "state.safetensors").exists()
    assert sha256_of(catalog.folder("tiny") / FILE) == catalog["tiny"].residual_variance == estimate
    assert "1x8x8" in ddpm("models").stdout
    assert [path.name for path in models_dir.iterdir()] == ["tiny"]


def test_a_name_is_taken_once(tiny_model: Path) -> None:
    ddpm("models", "add", tiny_model, "--name", "tiny")
    again = ddpm("models", "add", tiny_model, "--name", "tiny")
    assert (again.exit_code, "choose another --name" in again.stderr) == (1, True)


def test_a_name_that_could_leave_the_folder_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    result = ddpm("models", "add", tiny_model, "--name", "../tiny")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert not (tmp_path / "tiny").exists()


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    result = ddpm("models", "add", tmp_path, "--name", "tiny")
    assert (result.exit_code, str(tmp_path) in result.stderr) == (1, True)
