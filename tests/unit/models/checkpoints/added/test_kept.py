"""Weights that were replaced or removed, and that jobs still need."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.checkpoints.added import kept
from models.checkpoints.added.kept import exchange, forget, keep, kept_models, put_in_place
from models.checkpoints.catalog import read_card
from tests.support.cards import write_card_of


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_card_of("model", tmp_path / "root", licence="old")
    write_card_of("model", tmp_path / "root" / ".scratch", licence="new")
    return tmp_path / "root"


def refuse(one: Path, other: Path) -> None:
    raise OSError("this system cannot exchange two names")


@pytest.mark.parametrize("exchange_names", [exchange, refuse])
def test_a_model_takes_the_place_of_another_which_is_kept(root, monkeypatch, exchange_names):
    monkeypatch.setattr(kept, "exchange", exchange_names)
    put_in_place(root / ".scratch" / "model", root / "model")
    assert read_card(root / "model").licence == "new"
    ((folder, card),) = kept_models([root]).items()
    assert (card.licence, folder.parent) == ("old", root / ".kept")


def test_a_model_that_is_forgotten_leaves_no_folder(root):
    keep(root / "model")
    (folder,) = kept_models([root])
    forget(folder)
    assert (kept_models([root]), (root / ".kept").exists()) == ({}, False)
    # another worker may have been faster
    forget(folder)


def test_a_model_without_a_predecessor_just_moves(root):
    put_in_place(root / ".scratch" / "model", root / "other")
    assert (kept_models([root]), read_card(root / "other").licence) == ({}, "new")


def test_names_that_are_not_there_cannot_be_exchanged(root):
    with pytest.raises(OSError, match="No such file"):
        exchange(root / "model", root / "nothing")
