"""The results store that is a folder or a bucket: any file system that fsspec opens."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any
from uuid import uuid4

from worker.results.store import StoreFault

_PUTS_ARE_ATOMIC = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"}
_FOLDERS = {"file", "local"}


class ObjectStore:
    """Stores each PNG and each blob as one object. A reader finds all of it or nothing."""

    external = True

    def __init__(self, file_system: Any, root: str, protocol: str, name: str) -> None:
        """Use the folder `root` of a file system of fsspec; `name` is what faults call it."""
        self._fs = file_system
        self._root = root
        self._name = name
        self._atomic = protocol in _PUTS_ARE_ATOMIC
        self._local = protocol in _FOLDERS

    def put(self, job: str, images: Sequence[tuple[int, bytes]]) -> list[bytes]:
        """Store PNGs by index; nothing of them is to lie in Redis."""
        self._put(job, {_name(index): png for index, png in images})
        return [b""] * len(images)

    def put_blob(self, job: str, name: str, blob: bytes) -> None:
        """Store a blob, or replace it."""
        self._put(job, {name: blob})

    def get_blob(self, job: str, name: str) -> bytes | None:
        """Return a blob, or None if it is not there."""
        return self._get(job, [name])[0]

    def get(self, job: str, indices: Sequence[int]) -> list[bytes | None]:
        """Return the PNGs of a job's images, None for each that is not there."""
        return self._get(job, [_name(index) for index in indices])

    def remove(self, job: str, indices: Iterable[int]) -> None:
        """Remove PNGs."""
        for index in indices:
            self.remove_blob(job, _name(index))

    def remove_blob(self, job: str, name: str) -> None:
        """Remove a blob."""
        with self._faults(), suppress(FileNotFoundError):
            self._fs.rm_file(self._path(job, name))

    def remove_all(self, job: str) -> None:
        """Remove whatever lies there of the job, also what a killed worker left half written."""
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
                if self._local:
                    # The names have to reach the disk too, of the files and of their folder.
                    for folder in (self._folder(job), self._root):
                        _sync(folder)

    def _get(self, job: str, names: Sequence[str]) -> list[bytes | None]:
        with self._faults():
            paths = [self._path(job, name) for name in names]
            found = self._fs.cat_ranges(paths, None, None, on_error="return")
            blobs = [_bytes_or_none(answer) for answer in found]
            if None in blobs and self._local and not self._fs.exists(self._root):
                # The disk is not there, which says nothing of the images.
                raise FileNotFoundError(errno.ENOENT, self._root)
            return blobs

    def _put_whole(self, path: str, blob: bytes) -> None:
        """Write under another name first; on the disk, the object gets its own name."""
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
    """Turns whatever a file system raises into a StoreFault.

    The error's own text is left out, because it may hold a URL with a secret.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, Exception):
            raise StoreFault(
                f"the results store {self._name} {_ailment(error)} ({type(error).__name__})"
            ) from None


def _ailment(error: Exception) -> str:
    match error:
        case OSError(errno=int(number)) if number:
            return f"fails: {os.strerror(number)}"
        case FileNotFoundError():
            return "has no such bucket or folder"
        case PermissionError():
            return "refuses these credentials"
    return "does not answer as it should"


def _name(index: int) -> str:
    return f"{index}.png"


def _bytes_or_none(answer: bytes | Exception) -> bytes | None:
    if isinstance(answer, FileNotFoundError):
        return None
    if isinstance(answer, Exception):
        raise answer
    return answer
