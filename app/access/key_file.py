"""Keys from a file that is read again when it changes.

The file is TOML, with a table for each owner:

    [ann]
    requests_per_s = 20
    max_open_image_steps = 1_000_000
    keys = [
        { sha256 = "5f1e...", expires = 2027-01-31 },
        { sha256 = "77c0...", scopes = ["read"] },
    ]
"""

from __future__ import annotations

import datetime
import logging
import os
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from app.access.api_keys import DEFAULT_SCOPES, NAME, ApiKey, BadKeys, Keyring, Scope
from app.jobs.bounds import OwnBounds
from worker.logs import event

log = logging.getLogger(__name__)
# How long a change of the file may go unnoticed.
LOOK_EVERY_S = 1.0
_LARGEST_BYTES = 4 * 1024 * 1024


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class _Key(_Strict):
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    expires: datetime.datetime | datetime.date | None = None
    scopes: Annotated[frozenset[Scope], Field(min_length=1)] = DEFAULT_SCOPES


_AtLeastOne = Annotated[int, Field(ge=1, le=2**53)]


class _Owner(_Strict):
    keys: Annotated[list[_Key], Field(min_length=1)]
    requests_per_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    max_open_image_steps: _AtLeastOne | None = None
    max_open_jobs: _AtLeastOne | None = None
    max_kept_jobs: _AtLeastOne | None = None
    max_kept_bytes: _AtLeastOne | None = None
    max_streams: _AtLeastOne | None = None


_OWNERS = TypeAdapter(dict[Annotated[str, Field(pattern=f"^{NAME.pattern}$")], _Owner])


def read_key_file(path: Path) -> list[ApiKey]:
    """Return the keys of the file.

    Raises:
        BadKeys: the file cannot be read or used. The text names the place, and shows no key.
    """
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise BadKeys(f"{path} is larger than {_LARGEST_BYTES} bytes; it is no file of keys")
        owners = _OWNERS.validate_python(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise BadKeys(
            f"{path} cannot be read: {reason}; let DDPM_API_KEYS_FILE name a file of keys"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise BadKeys(f"{path} is no TOML: {error}; correct it") from None
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"] if part != "[key]")
        raise BadKeys(f"{path}: {place}: {first['msg']}; correct it") from None
    return [
        ApiKey(
            name,
            bytes.fromhex(key.sha256),
            key.scopes,
            _expiry(key.expires),
            owner.requests_per_s,
            OwnBounds(
                image_steps=owner.max_open_image_steps,
                jobs_open=owner.max_open_jobs,
                jobs_kept=owner.max_kept_jobs,
                bytes_kept=owner.max_kept_bytes,
            ),
            owner.max_streams,
        )
        for name, owner in owners.items()
        for key in owner.keys
    ]


class KeySource:
    """The keys of a setting and of a file, which may change while the service runs."""

    def __init__(
        self,
        entries: str = "",
        path: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the keys.

        Args:
            entries: DDPM_API_KEYS.
            path: DDPM_API_KEYS_FILE.
            clock: the time in seconds, from any beginning.

        Raises:
            BadKeys: an entry or the file cannot be used.
        """
        self._entries = Keyring.parse(entries)
        self._path = path
        self._clock = clock
        self._seen = _state_of(path)
        self._looked_at = clock()
        self._ring = self._read()

    def __bool__(self) -> bool:
        """Tell whether requests need a key: so they do with a file, even one without keys."""
        return self._path is not None or bool(self._entries)

    def ring(self) -> Keyring:
        """Return the keys that are let in now.

        A file that cannot be used leaves the keys as they were, and is named in the log once.
        """
        now = self._clock()
        if self._path is None or now - self._looked_at < LOOK_EVERY_S:
            return self._ring
        self._looked_at = now
        state = _state_of(self._path)
        if state == self._seen:
            return self._ring
        self._seen = state
        try:
            self._ring = self._read()
        except BadKeys as error:
            log.error(
                "the keys stay as they were: %s",
                error,
                extra=event("keys.unusable", file=str(self._path)),
            )
        else:
            log.info(
                "%s was read again: it has keys of %s",
                self._path,
                self._ring.names,
                extra=event("keys.reloaded", file=str(self._path), names=sorted(self._ring.names)),
            )
        return self._ring

    def _read(self) -> Keyring:
        if self._path is None:
            return self._entries
        return self._entries.joined_by(read_key_file(self._path))


def _state_of(path: Path | None) -> tuple[int, ...] | None:
    """Return what changes when a file is written or another one takes its place."""
    if path is None:
        return None
    try:
        state = os.stat(path)
    except OSError:
        return None
    return state.st_mtime_ns, state.st_size, state.st_ino, state.st_dev


def _expiry(when: datetime.datetime | datetime.date | None) -> float | None:
    """Return the time in seconds since the epoch.

    A time without a zone is in UTC, and a date stands for its end.
    """
    if when is None:
        return None
    if not isinstance(when, datetime.datetime):
        day = datetime.datetime.combine(when, datetime.time(), datetime.UTC)
        return (day + datetime.timedelta(days=1)).timestamp()
    return (when if when.tzinfo else when.replace(tzinfo=datetime.UTC)).timestamp()
