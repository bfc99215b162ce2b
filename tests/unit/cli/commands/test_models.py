"""`ddpm models add` and the table of `ddpm models`."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cli.main import app
from models.checkpoints.card import make_card
from models.checkpoints.catalog import Catalog, DataCard, Defaults, sha256_of, write_card
from models.checkpoints.diffusers_format import WEIGHTS
from models.checkpoints.residual_variance import FILE, ResidualVariance


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
    estimate = ResidualVariance(
        weights=weights, data="noise", images=1, seed=0, values=(0.5,) * 20
    ).write(tiny_model)
    options = "--name tiny --licence MIT --data-name noise --default"
    added = ddpm("models", "add", tiny_model, *options.split())
    assert added.exit_code == 0, added.stderr
    catalog = Catalog.read(models_dir)
    card = catalog.default
    assert (card.name, card.data.name, card.licence) == ("tiny", "noise", "MIT")
    assert not (catalog.folder("tiny") / "state.safetensors").exists()
    assert sha256_of(catalog.folder("tiny") / FILE) == catalog["tiny"].residual_variance == estimate
    assert "1x8x8" in ddpm("models").stdout
    assert [path.name for path in models_dir.iterdir()] == ["tiny"]


def test_an_added_default_model_is_the_only_default(tiny_model: Path, models_dir: Path) -> None:
    """Check all cards, because the last default in the alphabet would win."""
    ddpm("models", "add", tiny_model, "--name", "z", "--default")
    ddpm("models", "add", tiny_model, "--name", "b")
    assert Catalog.read(models_dir).default.name == "z"
    added = ddpm("models", "add", tiny_model, "--name", "a", "--default")
    assert f"added a to {models_dir} as the default instead of z; restart" in added.stdout
    assert [(card.name, card.default) for card in Catalog.read(models_dir).values()] == [
        ("a", True),
        ("b", False),
        ("z", False),
    ]


def test_a_card_that_cannot_be_read_is_named_before_another_becomes_the_default(
    tiny_model: Path, models_dir: Path
) -> None:
    (models_dir / "broken").mkdir(parents=True)
    (models_dir / "broken" / "card.json").write_text("{")
    added = ddpm("models", "add", tiny_model, "--name", "tiny", "--default")
    assert (added.exit_code, str(models_dir / "broken" / "card.json") in added.stderr) == (1, True)
    assert [path.name for path in models_dir.iterdir()] == ["broken"]


def test_a_name_that_is_taken_is_refused(tiny_model: Path) -> None:
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


@pytest.fixture
def trained(tiny_model: Path) -> Path:
    """A folder with a card, as `ddpm train` leaves it."""
    card = make_card(
        tiny_model,
        "run-7",
        data=DataCard(name="noise", licence="CC0-1.0", images=9),
        licence="MIT",
        provenance="trained here",
        defaults=Defaults(sampler="ddim", steps=5, eta=0.5),
    )
    write_card(tiny_model, card)
    return tiny_model


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], DataCard(name="noise", licence="CC0-1.0", images=9)),
        (["--data-licence", "MIT"], DataCard(name="noise", licence="MIT", images=9)),
        (["--data-name", "other"], DataCard(name="other", licence="unknown")),
    ],
    ids=["none", "data-licence", "data-name"],
)
def test_the_card_of_a_trained_model_holds_where_no_option_says_otherwise(
    trained: Path, models_dir: Path, options: list[str], expected: DataCard
) -> None:
    added = ddpm("models", "add", trained, "--name", "tiny", "--licence", "Apache-2.0", *options)
    assert (added.exit_code, added.stderr) == (0, "")
    card = Catalog.read(models_dir)["tiny"]
    assert (card.name, card.licence, card.provenance) == ("tiny", "Apache-2.0", "trained here")
    assert card.defaults == Defaults(sampler="ddim", steps=5, eta=0.5)
    assert card.data == expected


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"sha256": "0" * 64}, "card.json is of other weights"), ({"mystery": 1}, "mystery")],
)
def test_a_card_that_does_not_fit_is_reported_and_not_used(
    trained: Path, models_dir: Path, changes: dict[str, object], reason: str
) -> None:
    (trained / "card.json").write_text(
        json.dumps(json.loads((trained / "card.json").read_text()) | changes)
    )
    added = ddpm("models", "add", trained, "--name", "tiny")
    assert added.exit_code == 0
    assert added.stderr.startswith("not taken: ")
    assert reason in added.stderr
    card = Catalog.read(models_dir)["tiny"]
    assert (card.licence, card.data.name, card.defaults.steps) == ("unknown", "unknown", 20)


@pytest.mark.parametrize("below", [".", "deeper"])
def test_a_models_dir_that_cannot_be_made_is_named_with_the_variable(
    tiny_model: Path, models_dir: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    models_dir.write_text("a file")
    monkeypatch.setenv("DDPM_MODELS_DIR", str(models_dir / below))
    added = ddpm("models", "add", tiny_model, "--name", "tiny")
    assert (added.exit_code, added.stderr.count("\n")) == (1, 1)
    assert f"cannot be added to {models_dir}" in added.stderr
    assert "DDPM_MODELS_DIR" in added.stderr


def test_a_full_disk_leaves_no_partial_model(
    tiny_model: Path, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("cli.commands.models.write_card", refuse)
    added = ddpm("models", "add", tiny_model, "--name", "tiny")
    assert (added.exit_code, added.stderr.count("\n")) == (1, 1)
    assert "(No space left on device); correct that" in added.stderr
    assert list(models_dir.iterdir()) == []
