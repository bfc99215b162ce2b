"""Keys in a file: what it may hold, and that a change is seen."""

from __future__ import annotations

import logging
import os
from hashlib import sha256
from pathlib import Path

import pytest

from app.access.api_keys import BadKeys, Scope, new_key
from app.access.key_file import LOOK_EVERY_S, KeySource, read_key_file
from app.jobs.bounds import OwnBounds

HASH = sha256(b"secret").hexdigest()
OTHER = sha256(b"other").hexdigest()


class Clock:
    """Stands still until it is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def test_a_key_has_scopes_expiry_and_its_owners_limits(path: Path) -> None:
    path.write_text(f"""
        ["ann.lee"]
        requests_per_s = 2.5
        max_open_image_steps = 1_000
        keys = [
            {{ sha256 = "{HASH}", expires = 2027-01-31 }},
            {{ sha256 = "{OTHER}", scopes = ["read"], expires = 2027-01-31T12:00:00+01:00 }},
        ]
    """)
    first, second = read_key_file(path)
    assert (first.name, first.sha256.hex(), first.scopes) == (
        "ann.lee",
        HASH,
        {Scope.SUBMIT, Scope.READ},
    )
    assert (first.requests_per_s, first.bounds) == (2.5, OwnBounds(image_steps=1000))
    assert first.expires_at == 1801440000.0, "the end of the day, UTC"
    assert second.expires_at == 1801393200.0
    assert second.scopes == {Scope.READ}
    assert not second.may(Scope.SUBMIT)
    assert [second.has_expired(now) for now in (1801393199.0, 1801393200.0)] == [False, True]


def test_a_time_without_a_zone_is_utc(path: Path) -> None:
    path.write_text(f'[ann]\nkeys = [{{ sha256 = "{HASH}", expires = 2027-01-31T11:00:00 }}]')
    assert read_key_file(path)[0].expires_at == 1801393200.0


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[ann", "is no TOML"),
        ("[ann]", "ann.keys: Field required"),
        ("[ann]\nkeys = []", "ann.keys: List should have at least 1 item"),
        ('[ann]\nkeys = [{ sha256 = "secret" }]', r"ann.keys.0.sha256: String should match"),
        (f'[ann]\nkeys = [{{ sha256 = "{HASH}", scope = "read" }}]', "ann.keys.0.scope: Extra"),
        (
            f'[ann]\nkeys = [{{ sha256 = "{HASH}", scopes = ["all"] }}]',
            "ann.keys.0.scopes.0: Input should be 'submit', 'read' or 'operate'",
        ),
        (f'[ann]\nrequests_per_s = -1\nkeys = [{{ sha256 = "{HASH}" }}]', "ann.requests_per_s"),
        (f'["a b"]\nkeys = [{{ sha256 = "{HASH}" }}]', "a b: String should match"),
        ("keys = 1", "keys: Input should be a valid dictionary"),
    ],
)
def test_a_bad_file_is_refused_by_its_place_and_shows_no_key(
    path: Path, text: str, named: str
) -> None:
    path.write_text(text)
    with pytest.raises(BadKeys, match=named) as caught:
        read_key_file(path)
    assert "secret" not in str(caught.value)
    assert HASH not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(path: Path, tmp_path: Path) -> None:
    with pytest.raises(BadKeys, match=r"keys.toml cannot be read: No such file"):
        KeySource("", path)
    with pytest.raises(BadKeys, match="cannot be read: Is a directory"):
        KeySource("", tmp_path)
    path.write_bytes(b"\xff")
    with pytest.raises(BadKeys, match="cannot be read: it is not UTF-8"):
        KeySource("", path)


def test_the_same_key_in_setting_and_file_is_refused(path: Path) -> None:
    path.write_text(f'[bob]\nkeys = [{{ sha256 = "{HASH}" }}]')
    with pytest.raises(BadKeys, match=r"entry 2 \(bob\) has the SHA256 of entry 1 \(ann\)"):
        KeySource(f"ann:{HASH}", path)


def test_a_changed_file_is_read_again_and_a_bad_one_leaves_the_keys(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock()
    (first, entry), (second, other) = new_key("ann"), new_key("bob")
    path.write_text(f'[ann]\nkeys = [{{ sha256 = "{entry.partition(":")[2]}" }}]')
    source = KeySource("", path, clock)
    assert source.ring().find(first)

    clock.now += LOOK_EVERY_S
    path.write_text("[ann]")
    assert source.ring().find(first)
    clock.now += LOOK_EVERY_S
    assert source.ring().find(first)
    assert [record.levelname for record in caplog.records] == ["ERROR"], "it is named once"

    replacement = path.with_suffix(".new")
    replacement.write_text(f'[bob]\nkeys = [{{ sha256 = "{other.partition(":")[2]}" }}]')
    os.replace(replacement, path)
    assert source.ring().find(first), "a look a second"
    clock.now += LOOK_EVERY_S
    assert not source.ring().find(first)
    assert source.ring().find(second)
    assert "keys of ['bob']" in caplog.records[-1].getMessage()
    path.unlink()
    clock.now += LOOK_EVERY_S
    assert source.ring().find(second)


def test_a_file_without_keys_lets_nobody_in(path: Path) -> None:
    path.write_text("")
    source = KeySource("", path)
    assert source
    assert not KeySource()
    assert source.ring().find("") is None
