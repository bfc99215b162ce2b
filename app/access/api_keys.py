"""API keys: the service knows their SHA-256 only, and a key's name is the owner of its jobs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest
from ipaddress import ip_address
from secrets import token_urlsafe

NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # it becomes part of Redis keys
_ENTRY = re.compile(f"({NAME.pattern}):([0-9a-f]{{64}})")
_KEY_BYTES = 32


class BadKeys(ValueError):
    """DDPM_API_KEYS cannot be used. Says which entry, and nothing that is secret."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """Whoever asks. `sha256` is of the key's text."""

    name: str
    sha256: bytes


LOCAL = ApiKey("local", b"")  # everybody, where there are no keys


class Keyring:
    """The keys that are let in. An empty one means that there are none, and everybody is LOCAL."""

    def __init__(self, keys: Iterable[ApiKey] = ()) -> None:
        self._keys = tuple(keys)

    def __bool__(self) -> bool:
        return bool(self._keys)

    @property
    def names(self) -> list[str]:
        """Whose jobs there can be."""
        return sorted(key.name for key in self._keys or (LOCAL,))

    @classmethod
    def parse(cls, text: str) -> Keyring:
        """Of `name:sha256` entries between commas. Raises BadKeys."""
        entries = [entry.strip() for entry in text.split(",")] if text.strip() else []
        keys = [_parse(number, entry) for number, entry in enumerate(entries, 1)]
        for number, key in enumerate(keys, 1):
            _check_unlike(number, key, keys[: number - 1])
        return cls(keys)

    def find(self, text: str) -> ApiKey | None:
        """Compares with every key, to the end: neither how many bytes agree nor which key it is can be timed."""
        digest, found = sha256(text.encode()).digest(), None
        for key in self._keys:
            if compare_digest(key.sha256, digest):
                found = key
        return found


def new_key(name: str) -> tuple[str, str]:
    """A key, and its entry for DDPM_API_KEYS. Raises BadKeys for a name that cannot be one."""
    if not NAME.fullmatch(name):
        raise BadKeys(f"the name {name!r} cannot be a key's; {_NAMES}")
    text = token_urlsafe(_KEY_BYTES)
    return text, f"{name}:{sha256(text.encode()).hexdigest()}"


_NAMES = "use 1 to 64 letters, digits, '.', '_' and '-', a letter or digit first"


def _parse(number: int, entry: str) -> ApiKey:
    """What is not an entry may be a key in the clear, so none of it is shown but a name that can be one."""
    match = _ENTRY.fullmatch(entry)
    if match:
        return ApiKey(match[1], bytes.fromhex(match[2]))
    name, colon, _ = entry.partition(":")
    which = f"entry {number} ({name})" if colon and NAME.fullmatch(name) else f"entry {number}"
    raise BadKeys(
        f"DDPM_API_KEYS: {which} is not NAME:SHA256; {_NAMES}, then 64 lower-case hexadecimal digits, "
        "as `ddpm keys new NAME` prints them"
    )


def _check_unlike(number: int, key: ApiKey, others: Iterable[ApiKey]) -> None:
    """Two keys of one name would share their jobs, and a key of two names would have an owner by chance."""
    for other_number, other in enumerate(others, 1):
        if key.name == other.name or key.sha256 == other.sha256:
            shared = "the name" if key.name == other.name else "the SHA256"
            raise BadKeys(
                f"DDPM_API_KEYS: entry {number} ({key.name}) has {shared} of entry {other_number} ({other.name}); "
                f"give each key its own, or remove one"
            )


def is_loopback_host(host: str) -> bool:
    """Whether a name or address is this machine's own in every resolver: `localhost` or a loopback address."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
