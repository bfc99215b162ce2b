"""A catalog that follows its folders."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from models.checkpoints.catalog import CatalogError
from models.checkpoints.live_catalog import LiveCatalog
from tests.support.cards import write_card_of
from tests.support.clock import SimulatedClock


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock()


@pytest.fixture
def live(tmp_path: Path, clock: SimulatedClock) -> LiveCatalog:
    write_card_of("first", tmp_path / "shipped")
    return LiveCatalog(tmp_path / "shipped", tmp_path / "added", clock=clock)


def test_models_that_are_added_and_removed_are_seen_within_a_second(tmp_path, live, clock):
    write_card_of("second", tmp_path / "added")
    assert "second" not in live
    clock.pass_s(1.0)
    assert sorted(live) == ["first", "second"]
    assert live.default.name == "second"
    assert live.folder("second") == tmp_path / "added" / "second"
    shutil.rmtree(tmp_path / "added" / "second")
    clock.pass_s(1.0)
    assert (list(live), live.default.name) == (["first"], "first")


def test_a_name_that_was_there_a_line_ago_is_still_there(tmp_path, live, clock):
    assert "first" in live
    shutil.rmtree(tmp_path / "shipped" / "first")
    write_card_of("second", tmp_path / "added")
    clock.pass_s(1.0)
    assert live["first"].name == "first"
    assert "first" not in live


def test_a_card_that_cannot_be_read_hides_no_other(tmp_path, live, clock, caplog):
    write_card_of("second", tmp_path / "added")
    (tmp_path / "added" / "bad").mkdir()
    (tmp_path / "added" / "bad" / "card.json").write_text("{")
    clock.pass_s(1.0)
    assert sorted(live) == ["first", "second"]
    assert str(tmp_path / "added" / "bad") in caplog.text


def test_the_models_stay_if_all_cards_are_gone(tmp_path, live, clock):
    shutil.rmtree(tmp_path / "shipped")
    clock.pass_s(1.0)
    assert list(live) == ["first"]


def test_a_start_without_any_card_is_an_error(tmp_path):
    with pytest.raises(CatalogError, match="no card"):
        LiveCatalog(tmp_path)
