"""Where finished PNGs and large snapshots lie: in Redis, or in a results store in the folder `<url>/<job>`. Knows no torch.

The store is any that fsspec opens: a folder, S3, Google Cloud Storage. A PNG is there whole before its hash is recorded.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol
from uuid import uuid4

import fsspec
from fsspec.core import url_to_fs
from fsspec.registry import known_implementations

_PUTS_ARE_ATOMIC = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"}
_FOLDERS = {"file", "local"}
_S3: dict[str, Any] = {
    "config_kwargs": {"connect_timeout": 2, "read_timeout": 5, "retries": {"max_attempts": 1}},
    "max_concurrency": 1,  # requests for one object; with more of them s3fs asks for the size first
}
_OPTIONS = {"s3": _S3, "s3a": _S3}


class BadStoreUrl(ValueError):
    """A DDPM_RESULTS_URL that cannot be used; the text is fact, value and remedy, without what may be a secret."""


class StoreFault(Exception):
    """The results store does not answer, is full or refuses; time may mend it. The text holds no secret."""


class Store(Protocol):
    """Its methods block, and raise StoreFault."""

    external: bool  # not in Redis: no key's time to live removes what it holds

    def put(self, job: str, images: Sequence[tuple[int, bytes]]) -> list[bytes]:
        """Keep PNGs by index. Returns what is to lie in Redis for each."""
        ...

    def get(self, job: str, indices: Sequence[int]) -> list[bytes | None]: ...

    def remove(self, job: str, indices: Iterable[int]) -> None: ...

    def remove_all(self, job: str) -> None:
        """Whatever lies there of the job."""
        ...

    def put_blob(self, job: str, name: str, blob: bytes) -> None: ...

    def get_blob(self, job: str, name: str) -> bytes | None: ...

    def remove_blob(self, job: str, name: str) -> None: ...


class InRedis:
    """PNGs that the contract's scripts carry: nothing to do here."""

    external = False

    def put(self, job: str, images: Sequence[tuple[int, bytes]]) -> list[bytes]:
        return [png for _, png in images]

    def get(self, job: str, indices: Sequence[int]) -> list[bytes | None]:
        raise StoreFault("the job's images lie in a results store, and this process has none; set its DDPM_RESULTS_URL")

    def remove(self, job: str, indices: Iterable[int]) -> None: ...

    def remove_all(self, job: str) -> None: ...

    def put_blob(self, job: str, name: str, blob: bytes) -> None:
        raise AssertionError("blobs go to Redis where there is no results store")

    def get_blob(self, job: str, name: str) -> bytes | None:
        return None  # another worker has a results store and this one has none

    def remove_blob(self, job: str, name: str) -> None: ...


class InObjects:
    """One object a PNG or a blob. Whoever reads finds all of it or nothing."""

    external = True

    def __init__(self, file_system: Any, root: str, protocol: str, name: str) -> None:
        self._fs, self._root, self._name = file_system, root, name
        self._atomic, self._local = protocol in _PUTS_ARE_ATOMIC, protocol in _FOLDERS

    def put(self, job: str, images: Sequence[tuple[int, bytes]]) -> list[bytes]:
        self._put(job, {_name(index): png for index, png in images})
        return [b""] * len(images)

    def put_blob(self, job: str, name: str, blob: bytes) -> None:
        self._put(job, {name: blob})

    def get_blob(self, job: str, name: str) -> bytes | None:
        return self._get(job, [name])[0]

    def get(self, job: str, indices: Sequence[int]) -> list[bytes | None]:
        return self._get(job, [_name(index) for index in indices])

    def remove(self, job: str, indices: Iterable[int]) -> None:
        for index in indices:
            self.remove_blob(job, _name(index))

    def remove_blob(self, job: str, name: str) -> None:
        with self._faults(), suppress(FileNotFoundError):
            self._fs.rm_file(self._path(job, name))

    def remove_all(self, job: str) -> None:
        """Also what a killed worker left half written."""
        with self._faults(), suppress(FileNotFoundError):
            self._fs.rm(self._folder(job), recursive=True)

    def _put(self, job: str, blobs: Mapping[str, bytes]) -> None:
        paths = {self._path(job, name): blob for name, blob in blobs.items()}
        with self._faults():
            if self._atomic:
                self._fs.pipe(paths)
            else:
                self._fs.makedirs(self._folder(job), exist_ok=True)
                for path, blob in paths.items():
                    self._put_whole(path, blob)
                if self._local:  # the names as well, of the files and of their folder
                    for folder in (self._folder(job), self._root):
                        _sync(folder)

    def _get(self, job: str, names: Sequence[str]) -> list[bytes | None]:
        with self._faults():
            found = self._fs.cat_ranges([self._path(job, name) for name in names], None, None, on_error="return")
            blobs = [_bytes_or_none(answer) for answer in found]
            if None in blobs and self._local and not self._fs.exists(self._root):
                raise FileNotFoundError(errno.ENOENT, self._root)  # the disk is not there: that says nothing of the images
            return blobs

    def _put_whole(self, path: str, blob: bytes) -> None:
        """Under another name first, and on the disk before it gets its own."""
        part = f"{path}.{uuid4().hex}.part"
        try:
            with self._fs.open(part, "wb") as file:
                file.write(blob)
                if self._local:
                    file.flush()
                    os.fsync(file.fileno())
            self._fs.mv(part, path)
        except BaseException:
            with suppress(Exception):
                self._fs.rm_file(part)
            raise

    def _folder(self, job: str) -> str:
        return f"{self._root}/{job}"

    def _path(self, job: str, name: str) -> str:
        return f"{self._folder(job)}/{name}"

    def _faults(self) -> _Faults:
        return _Faults(self._name)


def _sync(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class _Faults:
    """Whatever a file system raises becomes a StoreFault; its own text is left out where it may hold a URL with a secret."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, Exception):
            raise StoreFault(f"the results store {self._name} {_ailment(error)} ({type(error).__name__})") from None


def _ailment(error: Exception) -> str:
    match error:
        case OSError(errno=int(number)) if number:
            return f"fails: {os.strerror(number)}"
        case FileNotFoundError():
            return "has no such bucket or folder"
        case PermissionError():
            return "refuses these credentials"
    return "does not answer as it should"


def open_store(url: str | None) -> Store:
    """Connects when first used. Raises BadStoreUrl."""
    if not url:
        return InRedis()
    shown, protocol = without_secrets(url), _protocol(url)
    if set("*?[]") & set(url):
        raise BadStoreUrl(f"DDPM_RESULTS_URL={shown} holds one of * ? [ ]; choose a path without")
    try:
        file_system, root = url_to_fs(url, skip_instance_cache=True, use_listings_cache=False, **_OPTIONS.get(protocol, {}))
    except Exception as error:  # each file system has its own; their texts may repeat the URL
        raise BadStoreUrl(
            f"DDPM_RESULTS_URL={shown} cannot be opened ({type(error).__name__}); correct it, "
            "see docs/how-to/store-results-elsewhere.md"
        ) from None
    return InObjects(file_system, root.rstrip("/"), protocol, shown)


def without_secrets(url: str) -> str:
    """Less what stands before an @, where passwords are, and after a question mark, where tokens are."""
    return re.sub(r"^([\w+.:-]*://)?.*@", r"\1***@", url, flags=re.DOTALL).partition("?")[0]


def _name(index: int) -> str:
    return f"{index}.png"


def _protocol(url: str) -> str:
    """Of a file system that is here; importing it is the test."""
    protocol, colon, path = url.partition("://")
    shown = without_secrets(url)
    if not colon or not path.strip("/"):
        raise BadStoreUrl(
            f"DDPM_RESULTS_URL={shown} names no place; use file:///FOLDER, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX"
        )
    try:
        fsspec.get_filesystem_class(protocol)
    except ValueError:
        raise BadStoreUrl(f"DDPM_RESULTS_URL={shown} is of an unknown kind; use file://, s3:// or gs://") from None
    except ImportError:
        package = known_implementations[protocol]["class"].partition(".")[0]
        raise BadStoreUrl(
            f"DDPM_RESULTS_URL={shown} needs the package {package}, which is absent; pip install {package}"
        ) from None
    return protocol


def _bytes_or_none(answer: bytes | Exception) -> bytes | None:
    if isinstance(answer, FileNotFoundError):
        return None
    if isinstance(answer, Exception):
        raise answer
    return answer
