"""API keys: the service knows only their SHA-256. A key's name is the owner of its jobs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest
from ipaddress import ip_address
from secrets import token_urlsafe

# A name becomes part of Redis keys.
NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NAMES = "use 1 to 64 letters, digits, '.', '_' and '-', a letter or digit first"
_ENTRY = re.compile(f"({NAME.pattern}):([0-9a-f]{{64}})")
_KEY_BYTES = 32


class BadKeys(ValueError):
    """DDPM_API_KEYS cannot be used. The text names the entry, and shows nothing secret."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key that is let in: its name, and the SHA-256 of its text."""

    name: str
    sha256: bytes


# Everybody, where there are no keys.
LOCAL = ApiKey("local", b"")


class Keyring:
    """The keys that are let in. An empty ring is false, and everybody is LOCAL."""

    def __init__(self, keys: Iterable[ApiKey] = ()) -> None:
        self._keys = tuple(keys)

    def __bool__(self) -> bool:
        return bool(self._keys)

    @property
    def names(self) -> list[str]:
        """Names of all owners that jobs can have, sorted."""
        return sorted(key.name for key in self._keys or (LOCAL,))

    @classmethod
    def parse(cls, text: str) -> Keyring:
        """Return the keys of `text`, which has `name:sha256` entries between commas.

        Raises:
            BadKeys: an entry is malformed, or has the name or the SHA-256 of another one.
        """
        entries = [entry.strip() for entry in text.split(",")] if text.strip() else []
        keys = [_parse(number, entry) for number, entry in enumerate(entries, 1)]
        for number, key in enumerate(keys, 1):
            _check_unique(number, key, keys[: number - 1])
        return cls(keys)

    def find(self, text: str) -> ApiKey | None:
        """Return the key whose text this is, if there is one.

        It is compared with every key to the end. The time that this takes shows neither how many
        bytes agree nor which key it is.
        """
        digest = sha256(text.encode()).digest()
        found = None
        for key in self._keys:
            if compare_digest(key.sha256, digest):
                found = key
        return found


def new_key(name: str) -> tuple[str, str]:
    """Make a key.

    Returns:
        The key's text, which only its owner should have, and its entry for DDPM_API_KEYS.

    Raises:
        BadKeys: the name cannot be a key's.
    """
    if not NAME.fullmatch(name):
        raise BadKeys(f"the name {name!r} cannot be a key's; {_NAMES}")
    text = token_urlsafe(_KEY_BYTES)
    return text, f"{name}:{sha256(text.encode()).hexdigest()}"


def _parse(number: int, entry: str) -> ApiKey:
    """Parse an entry.

    What is not one may be a key in clear text. An error shows none of it, except a name before
    a colon.
    """
    match = _ENTRY.fullmatch(entry)
    if match:
        return ApiKey(match[1], bytes.fromhex(match[2]))
    name, colon, _ = entry.partition(":")
    which = f"entry {number} ({name})" if colon and NAME.fullmatch(name) else f"entry {number}"
    raise BadKeys(
        f"DDPM_API_KEYS: {which} is not NAME:SHA256; {_NAMES}, then 64 lower-case hexadecimal "
        "digits, as `ddpm keys new NAME` prints them"
    )


def _check_unique(number: int, key: ApiKey, others: Iterable[ApiKey]) -> None:
    """Check that no other entry has this name or key.

    Two keys of one name would share their jobs. A key of two names would have either as its owner.
    """
    for other_number, other in enumerate(others, 1):
        if key.name == other.name or key.sha256 == other.sha256:
            shared = "the name" if key.name == other.name else "the SHA256"
            raise BadKeys(
                f"DDPM_API_KEYS: entry {number} ({key.name}) has {shared} of entry {other_number} "
                f"({other.name}); give each key its own, or remove one"
            )


def is_loopback_host(host: str) -> bool:
    """Return whether `host` is `localhost` or a loopback address.

    Every resolver takes those for this machine itself.
    """
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
