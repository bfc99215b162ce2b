"""Catalogs of model cards: what they hold, and which cards they refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from models.checkpoints.catalog import (
    SHIPPED,
    Card,
    Catalog,
    CatalogError,
    DataCard,
    Defaults,
    ScheduleCard,
    Shape,
    read_card,
    write_card,
)


def add(
    root: Path, folder: str, name: str | None = None, gflop: float = 0.1, **changes: object
) -> Path:
    """Write a folder with a card and nothing else, which is all that a catalog reads."""
    card = Card(
        name=name or folder,
        shape=Shape(channels=1, height=28, width=28),
        schedule=ScheduleCard(kind="linear", T=1000, beta_start=1e-4, beta_end=0.02),
        prediction="epsilon",
        defaults=Defaults(steps=100),
        parameters=1,
        gflop_per_image_step=gflop,
        data=DataCard(name="noise", licence="CC0-1.0"),
        licence="MIT",
        provenance="made up",
        sha256="0" * 64,
        **changes,
    )
    (root / folder).mkdir(parents=True)
    write_card(root / folder, card)
    return root / folder


def test_a_catalog_holds_every_folder_with_a_card(tmp_path):
    folders = {name: add(tmp_path, name) for name in ("b", "a")}
    (tmp_path / "no-card").mkdir()
    (tmp_path / "a-file").write_text("")
    catalog = Catalog.read(tmp_path, tmp_path / "no-such-root")
    assert list(catalog) == ["a", "b"]
    assert len(catalog) == 2
    assert catalog["a"] == read_card(folders["a"])
    assert catalog.folder("b") == folders["b"]
    assert "c" not in catalog


def test_a_later_roots_model_replaces_an_earlier_ones_of_the_same_name(tmp_path):
    add(tmp_path / "shipped", "x")
    mine = add(tmp_path / "mine", "other-folder", name="x")
    assert Catalog.read(tmp_path / "shipped", tmp_path / "mine").folder("x") == mine


def test_the_default_is_the_marked_card_and_the_last_marked_of_several(tmp_path):
    add(tmp_path / "one", "a", default=True)
    add(tmp_path / "one", "b")
    assert Catalog.read(tmp_path / "one").default.name == "a"
    add(tmp_path / "two", "c", default=True)
    assert Catalog.read(tmp_path / "one", tmp_path / "two").default.name == "c"


def test_the_last_card_is_the_default_if_none_is_marked(tmp_path):
    add(tmp_path, "a")
    add(tmp_path, "b")
    assert Catalog.read(tmp_path).default.name == "b"


def test_a_root_without_any_model_is_named_with_the_remedy(tmp_path):
    text = rf"no card.json below {tmp_path}; add a model with `ddpm models add FOLDER`"
    with pytest.raises(CatalogError, match=text):
        Catalog.read(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sha256", "abc"),
        ("name", "No Such"),
        ("prediction", "noise"),
        ("surplus", 1),
        ("schedule", {"kind": "linear", "T": 0}),
        ("schedule", {"kind": "linear", "T": 10, "beta_end": 1.5}),
        ("shape", {"channels": 0, "height": 1, "width": 1}),
        ("defaults", {"steps": 0}),
    ],
)
def test_a_bad_card_is_named_with_its_key(tmp_path, key, value):
    path = add(tmp_path, "a") / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(CatalogError, match=rf"{path}: {key}.*correct it or write it anew"):
        Catalog.read(tmp_path)


def test_default_steps_beyond_the_schedule_are_refused_with_the_range(tmp_path):
    path = add(tmp_path, "a") / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"defaults": {"steps": 1001}}))
    text = rf"{path}: the file: defaults\.steps=1001 is more than .*; use 1 to 1000; correct it"
    with pytest.raises(CatalogError, match=text):
        Catalog.read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_a_card_that_is_no_json_object_is_named(tmp_path, content):
    path = add(tmp_path, "a") / "card.json"
    path.write_bytes(content)
    with pytest.raises(CatalogError, match=rf"{path}: the file: .*correct it"):
        Catalog.read(tmp_path)


def test_a_card_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "card.json").mkdir()
    text = r"card\.json cannot be read \(Is a directory\); give the user"
    with pytest.raises(CatalogError, match=text):
        read_card(tmp_path)


def test_a_folder_without_a_card_is_named_with_the_remedy(tmp_path):
    with pytest.raises(CatalogError, match=r"has no card\.json; write one with `ddpm models add"):
        read_card(tmp_path)


def test_reading_cards_loads_no_torch():
    heavy = ("torch", "numpy", "diffusers")
    code = f"import sys, models.checkpoints.catalog; print(sys.modules.keys() & {set(heavy)!r})"
    root = Path(__file__).parents[4]
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(("gflop", "cost"), [(0.0, 1), (0.1, 1), (0.582, 1), (6.1, 10), (249, 415)])
def test_an_image_step_costs_as_many_small_ones_as_it_has_their_arithmetic(tmp_path, gflop, cost):
    card = read_card(add(tmp_path, "a", gflop=gflop))
    assert card.cost_per_image_step == cost


def test_an_image_step_of_the_shipped_model_counts_as_one():
    assert all(card.cost_per_image_step == 1 for card in Catalog.read(SHIPPED).values())
