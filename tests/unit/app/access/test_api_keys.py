from __future__ import annotations

from hashlib import sha256

import pytest

from app.access.api_keys import BadKeys, Keyring, is_loopback_host, new_key

HASH = sha256(b"secret").hexdigest()
OTHER = sha256(b"other").hexdigest()


def test_a_new_key_opens_the_service_that_has_its_entry() -> None:
    text, entry = new_key("ann")
    other_text, other_entry = new_key("bob")
    keyring = Keyring.parse(f" {entry} ,\n{other_entry}")
    found = [keyring.find(sent) for sent in (text, other_text, entry, text + " ", "")]
    assert [key and key.name for key in found] == ["ann", "bob", None, None, None]
    assert text not in entry
    assert len(text) >= 43, "256 bits"


@pytest.mark.parametrize("text", ["", "  \n"])
def test_no_entries_are_no_keys(text: str) -> None:
    assert not Keyring.parse(text)


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ("secret", "entry 2 is"),
        ("ann", "entry 2 is"),
        ("ann:", r"entry 2 \(ann\) is"),
        ("ann:secret", r"entry 2 \(ann\) is"),
        (f"ann:{HASH.upper()}", r"entry 2 \(ann\) is"),
        (f"ann:{HASH}0", r"entry 2 \(ann\) is"),
        (f"a b:{HASH}", "entry 2 is"),
        (f"a:b:{HASH}", r"entry 2 \(a\) is"),
        (f".ann:{HASH}", "entry 2 is"),
        (f"{'a' * 65}:{HASH}", "entry 2 is"),
        (f"änn:{HASH}", "entry 2 is"),
        ("", "entry 2 is"),
        (f"second:{OTHER}", r"entry 2 \(second\) has the SHA256 of entry 1 \(first\)"),
    ],
)
def test_a_bad_entry_is_named_and_nothing_secret_is_shown(entry: str, named: str) -> None:
    with pytest.raises(BadKeys, match=named) as caught:
        Keyring.parse(f"first:{OTHER},{entry}")
    assert "secret" not in str(caught.value)
    assert HASH[:16] not in str(caught.value).lower()
    assert OTHER[:16] not in str(caught.value)


def test_an_owner_may_have_an_old_and_a_new_key() -> None:
    (old, old_entry), (new, new_entry) = new_key("ann"), new_key("ann")
    keyring = Keyring.parse(f"{old_entry},{new_entry}")
    assert [key and key.name for key in map(keyring.find, (old, new))] == ["ann", "ann"]
    assert keyring.names == ["ann"]


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a,b", "-a", "a" * 65, "a\n"])
def test_a_name_that_would_be_a_bad_entry_gets_no_key(name: str) -> None:
    with pytest.raises(BadKeys, match="cannot be a key's; use"):
        new_key(name)


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("", False),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.1", False),
        ("8.8.8.8", False),
        ("localhost.example", False),
        ("127.0.0.1.example", False),
    ],
)
def test_only_loopback_is_this_machine(host: str, here: bool) -> None:
    assert is_loopback_host(host) is here
