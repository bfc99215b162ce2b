"""API keys: the service knows only their SHA-256. A key's name is the owner of its jobs.

An owner may have several keys, such as an old and a new one while clients change over.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from hmac import compare_digest
from ipaddress import ip_address
from secrets import token_urlsafe

from app.jobs.bounds import NO_OWN_BOUNDS, OwnBounds
from worker.jobs.domain import ANY_OWNER

# A name becomes part of Redis keys.
NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NAMES = "use 1 to 64 letters, digits, '.', '_' and '-', a letter or digit first"
_ENTRY = re.compile(f"({NAME.pattern}):([0-9a-f]{{64}})")
_KEY_BYTES = 32


class Scope(StrEnum):
    """What a key may do."""

    # post jobs; cancel and delete its owner's
    SUBMIT = "submit"
    # see its owner's jobs and their images
    READ = "read"
    # all of that, with everybody's jobs
    OPERATE = "operate"


DEFAULT_SCOPES = frozenset({Scope.SUBMIT, Scope.READ})


class BadKeys(ValueError):
    """DDPM_API_KEYS or its file cannot be used. The text names the place, and shows no key."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key that is let in.

    Attributes:
        name: the owner of its jobs.
        sha256: of the key's text.
        scopes: what it may do.
        expires_at: seconds since the epoch when it is let in no more; None for never.
        requests_per_s: the owner's limit; None for that of all.
        bounds: the owner's own bounds on its jobs.
        max_streams: the owner's limit; None for that of all.
    """

    name: str
    sha256: bytes
    scopes: frozenset[Scope] = DEFAULT_SCOPES
    expires_at: float | None = None
    requests_per_s: float | None = None
    bounds: OwnBounds = NO_OWN_BOUNDS
    max_streams: int | None = None

    @property
    def id(self) -> str:
        """What names the key in a signed link: nobody can turn it back, nor be let in with it."""
        return sha256(b"ddpm key id" + self.sha256).hexdigest()[:16]

    @property
    def sees(self) -> str:
        """The owner whose jobs it sees: its own name, or ANY_OWNER."""
        return ANY_OWNER if Scope.OPERATE in self.scopes else self.name

    def may(self, scope: Scope) -> bool:
        """Tell whether the key may do this; an operator may do all."""
        return scope in self.scopes or Scope.OPERATE in self.scopes

    def has_expired(self, now: float) -> bool:
        """Tell whether the key is let in no more, at `now` in seconds since the epoch."""
        return self.expires_at is not None and now >= self.expires_at


# Everybody, where there are no keys.
LOCAL = ApiKey("local", b"")


class Keyring:
    """The keys that are let in. An empty ring is false, and everybody is LOCAL."""

    def __init__(self, keys: Iterable[ApiKey] = ()) -> None:
        self._keys = tuple(keys)
        self._by_id = {key.id: key for key in self._keys}

    def __bool__(self) -> bool:
        return bool(self._keys)

    @property
    def names(self) -> list[str]:
        """Names of all owners that jobs can have, sorted."""
        return sorted({key.name for key in self._keys or (LOCAL,)})

    @classmethod
    def parse(cls, text: str) -> Keyring:
        """Return the keys of `text`, which has `name:sha256` entries between commas.

        Raises:
            BadKeys: an entry is malformed, or has the SHA-256 of another one.
        """
        entries = [entry.strip() for entry in text.split(",")] if text.strip() else []
        keys = [_parse(number, entry) for number, entry in enumerate(entries, 1)]
        _check_unique(keys, "DDPM_API_KEYS")
        return cls(keys)

    def joined_by(self, keys: Iterable[ApiKey]) -> Keyring:
        """Return a ring of these keys and others.

        Raises:
            BadKeys: two keys have the same SHA-256.
        """
        joined = [*self._keys, *keys]
        _check_unique(joined, "the keys of DDPM_API_KEYS and DDPM_API_KEYS_FILE")
        return Keyring(joined)

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

    def with_id(self, key_id: str) -> ApiKey | None:
        """Return the key that a signed link names, if it is let in now."""
        key = self._by_id.get(key_id)
        return None if key is None or key.has_expired(time.time()) else key


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


def _check_unique(keys: Sequence[ApiKey], where: str) -> None:
    """Check that no key is there twice: it would have either name as the owner of its jobs."""
    first: dict[bytes, int] = {}
    for number, key in enumerate(keys, 1):
        other = first.setdefault(key.sha256, number)
        if other != number:
            raise BadKeys(
                f"{where}: entry {number} ({key.name}) has the SHA256 of entry {other} "
                f"({keys[other - 1].name}); give each its own, or remove one"
            )


def is_loopback_host(host: str) -> bool:
    """Return whether `host` is `localhost`, in any case of its letters, or a loopback address.

    Every resolver takes those for this machine itself.
    """
    try:
        return host.lower() == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
